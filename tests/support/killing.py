"""Runs that kill themselves where they are about to do something: `python -m tests.support.killing STACK PLACES ARGV`.

`PLACES` is a JSON list of (place, how many times it is passed by). For each of them a child of this process begins a
run with `ARGV` in a folder of its own below `--output` and is killed there, and another child goes on with it. A first
child makes the whole run. All start from one process, which has loaded the framework.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

from coretrain.processes.heartbeat import Watch


def ended(words: list[str], place: str = "", passes: int = 0) -> int:
    """How a child ends that runs with these words: its exit code, negative where a signal killed it."""
    child = os.fork()
    if child == 0:
        seen, at = [], Watch.at

        def killing(self: Watch, where: str) -> None:
            seen.append(where)
            if where == place and seen.count(place) > passes:
                os.kill(os.getpid(), signal.SIGKILL)
            at(self, where)

        Watch.at = killing  # type: ignore[method-assign]
        code = 1
        try:
            code = import_module(f"{STACK}train.run").main(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    STACK, places, folder, *argv = sys.argv[1:]
    import_module(f"{STACK}train.trainer")
    codes = [ended([*argv, f"--output={Path(folder) / 'whole'}"])]
    for number, (place, passes) in enumerate(json.loads(places)):
        own = Path(folder) / str(number)
        codes.append(ended([*argv, f"--output={own}"], place, passes))
        codes.append(ended([f"--resume={own}"]))
    print(json.dumps(codes), file=sys.stderr)

"""The process in which code runs that isn't ours: it may raise, hang or end, and the run tells why.

`python -P -m coretrain.alignment.rewards.worker REQUESTS REPLIES LIFE SECONDS`, all numbers; JSON comes and goes, since
a reply must not be able to run anything. What the code prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from coretrain.alignment.rewards.calling import Refused, call, load, said, seed
from coretrain.base.errors import UserError

Answers = Sequence[Mapping[str, Any]]


def scorer(word: str, kind: str, folder: str) -> tuple[Callable[[Answers], dict[str, list[Any]]], str]:
    """What scores answers, by named parts; and what it depends on. Raises `Refused` or `UserError`."""
    if kind == "function":
        function, source = load(word, folder)
        return lambda answers: {"score": call(function, answers, word)}, source
    from coretrain.alignment.rewards.single import single_of

    one = single_of(word)
    return one.parts, ""


def main(requests: int, replies: int, life: int, seconds: float) -> None:
    """Answer requests until there are no more. Ends with the process that started it."""
    threading.Thread(target=_end_with, args=(life,), daemon=True).start()
    requested, replied = Connection(requests, writable=False), Connection(replies, readable=False)
    score: Callable[[Answers], dict[str, list[Any]]] | None = None
    while True:
        try:
            raw = requested.recv_bytes()
        except EOFError:
            return
        request = json.loads(raw)
        try:
            if score is None:
                score, source = scorer(**request)
                reply: dict[str, Any] = {"source": source}
            else:
                seed(raw)
                signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 60)  # ends it, though the other process was killed
                reply = {"parts": score(request)}
        except (Refused, UserError) as refused:
            reply = {"refused": list(refused.args[:2])}
        except BaseException as error:  # whatever other people's code raises
            reply = {"raised": said(error)}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        replied.send_bytes(json.dumps(reply).encode())


def _end_with(life: int) -> None:
    os.read(life, 1)  # nothing is written there: it ends when the other end is gone
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(2, 1)
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))

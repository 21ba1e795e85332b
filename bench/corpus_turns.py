"""Processes of two interpreters that take turns, measured in CPU seconds: the standard library alone, so that a peer's
interpreter can import it too."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

Facts = dict[str, Any]
Part = Callable[[], Facts]
"""Does the work once; what it tells must not change from turn to turn."""


def spent() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def peak_memory() -> int:
    """Bytes that this process held at most."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def serve(part: Part) -> None:
    """A child: for each line on stdin, do the work once and answer with its seconds and facts."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    for _ in sys.stdin:
        clock, cpu = time.perf_counter(), spent()
        facts = part()
        told = {"cpu": spent() - cpu, "clock": time.perf_counter() - clock, "facts": facts}
        print(json.dumps(told), file=answers, flush=True)


class Child:
    """A process kept alive between its turns: `PYTHON -m MODULE PART TASK`, which imports from `folder` too."""

    def __init__(
        self, python: str, module: str, part: str, task: Mapping[str, Any], log: str, folder: str = ""
    ) -> None:
        self.name, self._log = f"{module} {part}", log
        paths = [path for path in (folder, os.environ.get("PYTHONPATH", "")) if path]
        with open(log, "a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module, part, json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
            )

    def turn(self) -> dict[str, Any]:
        """One turn's `cpu`, `clock` and `facts`. Raises RuntimeError where it fails."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the other pipe tells
            print("go", file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}; see {self._log}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def family(root: int) -> set[int]:
    """A process and all that come from it, as far as they still hang together."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:  # it ended meanwhile
            continue
    found, grown = {root}, True
    while grown:
        more = {one for one, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found


def memory_of(processes: set[int]) -> int:
    """Bytes that processes hold together; what they share counts once."""
    total = 0
    for one in processes:
        try:
            with open(f"/proc/{one}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            continue
    return total * 1024


SET_CHILD_SUBREAPER = 36
"""Of Linux' prctl: processes whose parents have ended become children of this one, and their seconds are counted."""


def watched(command: list[str], log: str, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Run a command: its `clock` and `cpu` seconds with those of its processes, and the most `memory` of all together.

    Raises RuntimeError where it fails.
    """
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with open(log, "a", encoding="utf-8") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
    most, done, seen = [0], threading.Event(), set[int]()

    def look() -> None:
        while not done.wait(0.1):
            now = family(process.pid)
            seen.update(now)
            most[0] = max(most[0], memory_of(now))

    looking = threading.Thread(target=look)
    looking.start()
    code = process.wait()
    seconds = time.perf_counter() - clock
    done.set()
    looking.join()
    for one in seen - {process.pid}:  # such as the process that workers were forked from
        with contextlib.suppress(ChildProcessError):
            os.waitpid(one, 0)
    ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise RuntimeError(f"{' '.join(command[:4])} ended with status {code}; see {log}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"clock": seconds, "cpu": cpu, "memory": float(most[0])}

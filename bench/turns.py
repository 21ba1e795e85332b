"""Contenders as processes that take turns: what else the machine does hits all of them alike, and each has its own
peak memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from coretrain.base.errors import UserError
from coretrain.contract.update import Limits, Orders, Standing
from coretrain.data.batch import Batch

Turn = Callable[[int], list[float]]
"""A function of n: seconds of each of n more steps."""


def timed(step: Callable[[], object]) -> Turn:
    """A turn of so many calls of `step`."""

    def turn(times: int) -> list[float]:
        seconds = []
        for _ in range(times):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        return seconds

    return turn


def updates_of(trainer: Any, lr: float) -> Callable[[Batch, int], None]:
    """One whole update of a trainer on a batch, update n of as many that were applied, as the training loop asks for
    it; done when it returns."""

    def update(batch: Batch, n: int) -> None:
        orders = Orders(lr, Limits(math.inf, math.inf), 1.0, Standing(n, 0, False), alone=True)
        trainer.update(batch, n, orders, lambda: None)()

    return update


def serve(task: dict[str, Any], make: Callable[[dict[str, Any]], Turn]) -> None:
    """A child: for each number on stdin, do so many steps and answer with their seconds and the peak memory."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        turn = make(task)
        for line in sys.stdin:
            seconds = turn(int(line))
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            answer({"seconds": seconds, "memory": rss if sys.platform == "darwin" else rss * 1024})
    except Exception as error:  # the parent's table has a row for it
        answer({"error": f"{type(error).__name__}: {error}"})


class Child:
    """A contender's process, kept alive between its turns: `python -m module --child TASK`, which calls `serve`."""

    def __init__(self, module: str, task: Mapping[str, Any]) -> None:
        command = [sys.executable, "-m", module, "--child", json.dumps(task)]
        # faults come back as answers; the rest of stderr is libraries' chatter
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True)
        self.error: str | None = None
        self.memory = 0

    def turn(self, times: int) -> list[float]:
        """Seconds of each of so many more updates; empty, with `error` set, where the child failed."""
        if self.error:
            return []
        stdin, stdout = self._pipes()
        try:
            print(times, file=stdin, flush=True)
            answer = json.loads(stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            answer = {"error": f"its process ended with status {self.process.wait()}"}
        self.error, self.memory = answer.get("error"), answer.get("memory", 0)
        return answer.get("seconds", [])

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self._pipes()[0].close()
        self.process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin
        assert self.process.stdout
        return self.process.stdin, self.process.stdout


def in_turns(
    children: Mapping[str, Child], rounds: int, steps: int, say: Callable[[str], None]
) -> list[dict[str, list[float]]]:
    """Of each round, the seconds of so many steps of each child that hasn't failed."""
    found = []
    for index in range(rounds):
        say(f"round {index + 1} of {rounds}")
        turned = {name: child.turn(steps) for name, child in children.items()}
        found.append({name: seconds for name, seconds in turned.items() if seconds})
    return found


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Processor, cores and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = models[0] if models else cpu
    versions = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()} | versions


def given_fields(words: Sequence[str]) -> dict[str, str]:
    """`--section.field VALUE` pairs of the command line."""
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") and "." in name for name in names):
        raise UserError(
            "bench/bad-field-arguments",
            f"{' '.join(words)}: give fields of a run as --section.field VALUE, and see --help for the rest",
        )
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}

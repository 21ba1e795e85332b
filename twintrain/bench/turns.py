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
from dataclasses import dataclass, field
from typing import IO, Any, Self

from coretrain.base.errors import UserError
from coretrain.base.processor import processor, usable_cores
from coretrain.contract.update import Limits, Orders, Standing
from coretrain.data.batch import Batch


@dataclass(frozen=True)
class Turn:
    """What a contender does in its turn: so many calls of `step`."""

    step: Callable[[], object]
    facts: dict[str, Any] = field(default_factory=dict)
    """What else it tells of itself, as it stands after a turn: parameters, a loss."""

    def __call__(self, times: int) -> list[float]:
        """Seconds of each of so many more steps."""
        seconds = []
        for _ in range(times):
            begun = time.perf_counter()
            self.step()
            seconds.append(time.perf_counter() - begun)
        return seconds


def wait_for_gpu() -> None:
    """Until a GPU that torch computes on has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> tuple[int, str]:
    """Bytes that this process held at most, and where: on the GPU that it computes on, or else in host memory."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated()), "device"
    stats = jax.devices()[0].memory_stats() if jax else None  # a CPU has none
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "device"
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else rss * 1024, "host"


def updates_of(trainer: Any, lr: float) -> Callable[[Batch, int], float]:
    """One whole update of a trainer on a batch, update n of as many that were applied, as the training loop asks for
    it; done when it returns, with its loss."""

    def update(batch: Batch, n: int) -> float:
        orders = Orders(lr, Limits(math.inf, math.inf), 1.0, Standing(n, 0, False), alone=True)
        return float(trainer.update(batch, n, orders, lambda: None)().loss)

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
            seconds, (memory, place) = turn(int(line)), peak_memory()
            answer({"seconds": seconds, "memory": memory, "place": place, "facts": turn.facts})
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
        self.memory, self.place = 0, "host"
        self.facts: dict[str, Any] = {}

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
        self.error, self.memory, self.place = answer.get("error"), answer.get("memory", 0), answer.get("place", "host")
        self.facts = answer.get("facts", {})
        found: list[float] = answer.get("seconds", [])
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # it may be in the middle of a long turn
            self.process.kill()
        self.close()

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
    versions = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    system = f"{platform.system()} {platform.machine()}"
    facts: dict[str, Any] = {
        "cpu": processor(),
        "cores": usable_cores(),
        "system": system,
        "python": platform.python_version(),
    }
    return facts | versions


def given_fields(words: Sequence[str]) -> dict[str, str]:
    """`--section.field VALUE` pairs of the command line."""
    names, values = words[::2], words[1::2]
    if len(names) != len(values) or not all(name.startswith("--") and "." in name for name in names):
        raise UserError(
            "bench/bad-field-arguments",
            f"{' '.join(words)}: give fields of a run as --section.field VALUE, and see --help for the rest",
        )
    found = {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
    if found.get("precision.compute") == "auto":
        raise UserError(
            "bench/compute-not-chosen",
            "--precision.compute auto is chosen where a run begins: name the dtype that is to be measured",
        )
    return found

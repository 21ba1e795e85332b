"""The health policy at work: the contract's own loop drives one stack through bad updates, and through a resume."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import torchtrain.trainer
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.update import Figures, Orders, Read
from coretrain.data.batch import Batch
from coretrain.training.loop import Loop
from coretrain.training.stack import InStep
from parity.errors import largest_error, nrel
from parity.gates import (
    HEALTH,
    ROWS,
    TRAJECTORY,
    Gate,
)
from parity.pair import batches, noise_only
from parity.probes.parts import bare
from parity.probes.sides import (
    TORCH,
    Seen,
    Side,
    make,
    weights_of,
)

NO_NUMBERS, SPIKES, EARLY = (3, 13, 14, 30, 31, 32, 33), (21, 23, 27), 9
"""Updates whose loss is no number, and whose gradient norm is far above the window; and one more such, before which the
window is full only if the newest update counts. A spike comes after the resume; four faults in a row end the run."""
RESUMED, UPDATES = 25, 38


class _Journal:
    """What the loop says, kept: events, and the batch of each update."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []
        self.rows: list[tuple[int, str]] = []
        self.figures: list[tuple[float, float]] = []

    def event(self, update: int, kind: str, text: str) -> None:
        self.events.append((update, kind))

    def update(self, update: int, batch_hash: str, loss: float, grad_norm: float, **_: Any) -> None:
        self.rows.append((update, batch_hash))
        self.figures.append((loss, grad_norm))

    def rewind(self, update: int) -> None:
        pass


class _Loop(Loop):
    def evaluate(self) -> float:
        return 1.0


class _Failing:
    """A trainer whose updates fail by their data; it notes which were applied."""

    def __init__(self, stack: Any, rows: list[Batch]) -> None:
        self.stack, self.rows = stack, rows
        self.applied: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stack, name)

    def batches(self, data: Any, start: int, stop: int) -> Iterator[Batch]:
        return (_failing(self.rows[index % len(self.rows)], index) for index in range(start, stop))

    def update(self, batch: Batch, update: int, orders: Orders, change: Callable[[], None]) -> Read:
        read = self.stack.update(batch, update, orders, change)

        def noted() -> Figures:
            figures = read()
            if figures.applied:
                self.applied.append(update)
            return figures

        return noted


class _Ahead(torchtrain.trainer.Trainer):
    """As on CUDA, where no update is waited for."""

    in_step = False


def _failing(batch: Batch, update: int) -> Batch:
    """Weights of targets that make a batch what `update` is to have: in halves that nearly cancel, a norm is large."""
    weights = np.ones(batch.labels.shape, np.float32)
    if update in NO_NUMBERS:
        weights[0, 0] = np.nan
    if update in (EARLY, *SPIKES):
        weights[:, ::2] = -0.96875
    return dataclasses.replace(batch, weights=weights)


def _config() -> RunConfig:
    return bare(
        train__updates=UPDATES, train__eval_interval=100, health__spike="skip", health__window=8,
        health__spike_sigma=20, health__max_consecutive=4, schedule__horizon=UPDATES, schedule__warmup_updates=4,
    )  # fmt: skip


def run_health(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Updates up to `RESUMED`, a checkpoint, a new trainer, and the rest."""
    config, journal, applied = _config(), _Journal(), list[int]()
    rows, progress = batches(config, 11), Progress()
    no_data: Any = SimpleNamespace()
    told: Any = journal
    with tempfile.TemporaryDirectory() as folder:
        for stop in (RESUMED, UPDATES):
            part = config.changed(train__updates=stop)
            trainer = make(s, config, weights_of(config, state), shared)
            if s is TORCH and type(trainer).update is not InStep.update:  # a bug may have put that there
                trainer.__class__ = _Ahead
            stack = _Failing(trainer, rows)
            loop = _Loop(part, stack, no_data, Path(folder), told, progress)
            if stop == UPDATES:
                _, loop.progress = loop.checkpoints.first_that_loads(loop._load, print)
                loop.health.load(loop.progress.health)
            try:
                journal.events.append((stop, loop.train()))
            except RuntimeError:  # the stack came to another verdict than the loop
                journal.events.append((loop.progress.update, "another verdict"))
                break
            finally:
                applied += stack.applied
    events = [event for event in journal.events if event[1] != "checkpoint"]
    seen = {"events": events, "applied": applied, "rows": journal.rows, "figures": journal.figures}
    return seen | {"state": stack.export()}


def judge_health(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Verdicts that differ, updates that were or weren't applied as they should; batches; figures and states."""
    config, wanted = _config(), set(range(max(NO_NUMBERS))) - {*NO_NUMBERS, *SPIKES}
    both = (ours["state"], theirs["state"])
    figures = [np.array(seen["figures"]) for seen in (ours, theirs)]
    errors = [largest_error(both, weights_of(config, state), noise_only(config))[0], _apart(*figures)]
    return {
        HEALTH: len(set(ours["events"]) ^ set(theirs["events"])) + len(set(ours["applied"]) ^ wanted),
        ROWS: sum(a != b for a, b in itertools.zip_longest(ours["rows"], theirs["rows"])),
        TRAJECTORY: float(np.max(errors)),  # NaN counts as the largest
    }


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The larger nrel of losses [:, 0] and norms [:, 1]; what is no number in both is equal."""
    if ours.shape != theirs.shape:
        return math.inf
    return max(nrel(a, b) for a, b in zip(np.nan_to_num(ours).T, np.nan_to_num(theirs).T, strict=True))

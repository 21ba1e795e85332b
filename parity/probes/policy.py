"""The health policy at work: the contract's own loop drives one stack through bad updates, and through a resume."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from coretrain.training.loop import Loop
from parity.errors import largest_error
from parity.gates import (
    HEALTH,
    ROWS,
    TRAJECTORY,
    Gate,
)
from parity.pair import batches, noise_only
from parity.probes.parts import bare
from parity.probes.sides import (
    Seen,
    Side,
    make,
    weights_of,
)

OVERFLOWS, SPIKES = (3, 9, 10), (14, 16, 21)
"""Updates whose norm is no number, and whose loss is far above the window: the last one is past the resume."""
RESUMED, UPDATES = 18, 26


class _Journal:
    """What the loop says, kept: events, and the batch of each update."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str]] = []
        self.rows: list[tuple[int, str]] = []

    def event(self, update: int, kind: str, text: str) -> None:
        self.events.append((update, kind))

    def update(self, update: int, batch_hash: str, **_: Any) -> None:
        self.rows.append((update, batch_hash))

    def rewind(self, update: int) -> None:
        pass


class _Loop(Loop):
    def evaluate(self) -> float:
        return 1.0


class _Failing:
    """A trainer whose updates fail where they are told to; it notes which were applied."""

    def __init__(self, stack: Any, rows: list[Batch]) -> None:
        self.stack, self.rows, self.update = stack, rows, 0
        self.applied: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stack, name)

    def batches(self, data: Any, start: int, stop: int) -> Iterator[Batch]:
        return (self.rows[index % len(self.rows)] for index in range(start, stop))

    def gradients(self, batch: Batch, update: int, loss_scale: float) -> tuple[float, float]:
        self.update = update
        loss, norm = self.stack.gradients(batch, update, math.inf if update in OVERFLOWS else loss_scale)
        return loss + 50 * (update in SPIKES), norm

    def apply(self, lr: float, factor: float, applied: int) -> None:
        self.applied.append(self.update)
        self.stack.apply(lr, factor, applied)


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
            stack = _Failing(make(s, config, weights_of(config, state), shared), rows)
            loop = _Loop(part, stack, no_data, Path(folder), told, progress)
            if stop == UPDATES:
                _, loop.progress = loop.checkpoints.first_that_loads(loop._load, print)
                loop.health.load(loop.progress.health)
            loop.train()
            applied += stack.applied
    events = [event for event in journal.events if event[1] != "checkpoint"]
    return {"events": events, "applied": applied, "rows": journal.rows, "state": stack.export()}


def judge_health(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    """Verdicts that differ, updates that were or weren't applied as they should; batches; the states at the end."""
    config, wanted = _config(), set(range(UPDATES)) - {*OVERFLOWS, *SPIKES}
    both = (ours["state"], theirs["state"])
    return {
        HEALTH: len(set(ours["events"]) ^ set(theirs["events"])) + len(set(ours["applied"]) ^ wanted),
        ROWS: sum(a != b for a, b in itertools.zip_longest(ours["rows"], theirs["rows"])),
        TRAJECTORY: largest_error(both, weights_of(config, state), noise_only(config))[0],
    }

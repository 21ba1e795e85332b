"""Two runs that part: each followed again with the code as it is, then both stacks in float64, tap by tap.

Figures alone prove nothing. A verdict says "algorithm" only where a run doesn't come out again, by more than rounding
makes, or where the stacks part in float64, which has no rounding to speak of.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch, batch_hash
from coretrain.data.batches import updates_of
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.course import (
    Bench,
    Point,
    alone,
    as_configured,
    beginning,
    cost,
    in_float64,
)
from parity.localize.history import History
from parity.localize.retrace import (
    Retraced,
    exactly,
    retrace,
    stacks_apart,
    stretches,
)
from parity.localize.runs import SIDES, UNCONFIRMED, Examined, examine
from parity.localize.search import localize_config
from parity.localize.show import Report
from parity.localize.weigh import Side, weighed
from parity.pair import batches
from torchtrain.trainer import Trainer as TorchTrainer

REPLAYED = 4
"""Updates whose taps, moments and steps are compared in float64 at most."""
MICRO_BATCHES, ROWS = 2, 2
"""What of an update's batch is compared so at most."""
LARGEST = 30_000_000
"""Parameters above which a replay would take more time and memory than anybody expects of a verdict."""
FLOPS = 4e12
"""FLOPs that the replay of a run may take: 240 updates of the default run, under a minute on 2 cores."""
FLOPS_64 = 1e12
"""The same of both stacks in float64."""


def localize_runs(first: Path, second: Path) -> Report:
    """Where two runs part and why: the figures in their folders, each run trained again, both stacks in float64.

    The float64 look has torch go by the config of one run and JAX by the other's (each stack by its own run's, where
    they are of both). Raises `UserError` as `compare_runs` does.
    """
    with tempfile.TemporaryDirectory() as scratch:
        seen = examine(first, second, Path(scratch))
        kind = seen.report.verdict.kind
        if kind == "data":
            return _said(seen.report, kind, _whose_data(seen))
        if kind in ("same", "schedule", "health"):
            return seen.report
        if obstacle := _obstacle(seen):
            kind = "config" if kind == UNCONFIRMED and seen.differing else kind
            return _said(seen.report, kind, f"not replayed: {obstacle}")
        return _Replay(seen).report()


def _said(report: Report, kind: str, text: str) -> Report:
    sentence = f"{report.verdict.sentence}; {text}" if text else report.verdict.sentence
    return replace(report, verdict=replace(report.verdict, kind=kind, sentence=sentence))


def _obstacle(seen: Examined) -> str | None:
    configs = [history.config for history in seen.histories]
    if any(config.adapter.kind != "none" for config in configs):
        return "an adapter's base isn't trained, and the replay takes whole models"
    if other := next((config.data.format for config in configs if config.data.format != "text"), None):
        return f"the replay takes rows of text, and these are of data.format = {other}"
    shapes = [{row.name: row.shape for row in parameter_table(config.model)} for config in configs]
    if shapes[0] != shapes[1]:
        return "their models have other tensors"
    if (size := sum(int(np.prod(shape)) for shape in shapes[0].values())) > LARGEST:
        return f"{size:,} parameters are too many to be trained again"
    if seen.interval.pair is None and seen.interval.begun > 0:
        return f"they agree in no checkpoint, and their first common update is {seen.interval.begun}"
    return None


def _whose_data(seen: Examined) -> str:
    """Which of the runs has the rows that the data order gives at the first update whose rows differ."""
    update = int(seen.report.verdict.tap.rsplit(" ", 1)[1])
    rights = []
    for history in seen.histories:
        data = _data(history)
        if data is None:
            return ""
        batch = updates_of(data, history.own).batch(history.data_index(update))
        rights.append(batch_hash(batch) == history.updates[update]["batch_hash"])
    if rights == [True, True]:
        return "each has the rows that its own config asks for"
    if rights == [False, False]:
        return "neither has the rows that its config asks for"
    right = rights.index(True)
    return f"the {SIDES[right]} run has the rows that its config asks for, the {SIDES[1 - right]} hasn't"


def _data(history: History) -> Data | None:
    """What the run was trained on; None where it can't be read here, or has changed."""
    try:
        data = open_data(history.own, lambda _: None)
        names = [path.progress.data_fingerprint for path in _sealed(history)]
        return data if all(name in ("", data.fingerprint) for name in names) else None
    except (UserError, OSError):
        return None


def _sealed(history: History) -> list[Any]:
    kinds = (CheckpointFolder(history.folder / kind).newest_sealed() for kind in ("checkpoints", "interchange"))
    return [found[1] for found in kinds if found]


class _Replay:
    """The replay of two runs, in the order in which a verdict needs it."""

    def __init__(self, seen: Examined) -> None:
        self.seen, self.bench = seen, Bench()
        self.sides = [
            Side(history, snapshots, _data(history), [])
            for history, snapshots in zip(seen.histories, seen.snapshots, strict=True)
        ]
        self.around = [update for update in (seen.parting, seen.origin) if update is not None]
        stacks = [history.stack(self.around[0]) for history in seen.histories]
        self.crossed = sorted(stacks) == ["jax", "torch"]

    def report(self) -> Report:
        """The examined report with the verdict of the replay, and its rows before the others."""
        for side in self.sides:
            self.follow(side)
        # bits that differ are rounding, or of a bug that one stack has now: float64 tells them apart
        crossed = self.crossed or any(not one.equal for side in self.sides for one in side.retraced)
        apart = self.both_stacks() if crossed and not self.seen.differing else None
        fault = next((side.fault for side in self.sides if side.fault), None)
        unlike = not all(side.equal for side in self.sides) or self.crossed or bool(self.seen.differing)
        found, how = self.look(fault or (apart if apart and apart.what else None)) if unlike else (None, "")
        return weighed(self.seen, self.sides, self.bench, apart, found, how)

    def follow(self, side: Side) -> None:
        """Train a run again: in one go while it comes out bit for bit, then stretch by stretch from its own states."""
        history, names = side.history, sorted(side.snapshots.names)
        if side.data is None:
            side.left = "its data can't be read here, or has changed"
            return
        found = stretches(history, names)
        if not found or not history.stack(found[0].first):
            side.left = (
                "its journal has holes, its folder holds no state to begin from, or doesn't say which stack it was"
            )
            return
        most = int(FLOPS / cost(history.config))
        whole = found[-1].stop - found[0].first <= most
        # of a long run the stretch in which the runs part, and what follows
        some = found if whole else [one for one in found if one.stop > self.around[0]]
        stop = min(some[-1].stop, some[0].first + most)
        stop = history.of_one_stack(some[0].first, stop)
        some = [one for one in some if one.first < stop]
        if some[0].first > found[0].first or stop < found[-1].stop:
            side.left = f"of its updates {found[0].first} to {found[-1].stop - 1} these alone"
        try:
            side.retraced = exactly(self.bench, history, some, side.opened, side.data, stop)
            for stretch in some[len(side.retraced) :]:
                end, ends = min(stop, stretch.stop), (side.opened(stretch.begins), side.opened(stretch.ends))
                one = retrace(self.bench, history, stretch, ends, side.data, end)
                if one.what:  # before a run is blamed: the other stack's kernels are rounding too
                    one = retrace(self.bench, history, stretch, ends, side.data, end, beside=True)
                side.retraced.append(one)
                if one.what:
                    return
        except UserError as damage:
            side.left = f"{damage}"

    def both_stacks(self) -> Retraced | None:
        """The first run's updates in both stacks in float64: the first figure in which they part, or None."""
        side = self.sides[0]
        if side.data is None or not side.retraced:
            return None
        most = int(FLOPS_64 / cost(side.history.config))
        first, last = side.retraced[0], side.retraced[-1]
        if last.stop - first.stretch.first > most:  # of a long run, from where the runs part
            first = next((one for one in side.retraced if self.around[0] in one.stretch), first)
        stop = min(last.stop, first.stretch.first + most)
        if stop <= first.stretch.first:
            return None
        start = side.opened(first.stretch.begins)
        found = stacks_apart(self.bench, side.history, first.stretch, start, side.data, stop)
        return found if found.what else None

    def look(self, fault: Retraced | None) -> tuple[Report, str]:
        """Both stacks in float64, tap by tap, and how: from the state before the fault, or the last that agrees."""
        interval, histories = self.seen.interval, list(self.seen.histories)
        start = interval.good or "the initial weights"
        at = beginning(interval.pair[0] if interval.pair else None)
        if fault and fault.before:
            at, start = fault.before, f"the state after {fault.before.update} updates"
        stacks = [history.stack(at.update) for history in histories]
        if stacks == ["jax", "torch"]:
            histories.reverse()
        data = next(side.data for side in self.sides if side.history is histories[0])
        rows, real = _rows(histories[0], data, at)
        exact = [_small(in_float64(history.own), len(rows[0]), "float64") for history in histories]
        precision = histories[0].config.precision.compute
        below = (
            [_small(alone(history.own), len(rows[0]), precision) for history in histories]
            if precision != "float64"
            else []
        )
        sides = [{"float64": exact[n]} | ({precision: below[n]} if below else {}) for n in range(2)]
        groups = {g: {n: np.asarray(t[n], np.float64) for n in t} for g, t in (at.state or {}).items()}
        config = exact[0]
        with as_configured(config):
            found = localize_config(
                config,
                groups.pop("parameters", None) or initial_parameters(config.model, config.train.seed),
                self.seen.report.title,
                below[0] if below else None,
                make_torch=lambda c, w: TorchTrainer(sides[0][c.precision.compute], w),
                make_jax=lambda c, w: JaxTrainer(sides[1][c.precision.compute], w),
                feeds=(rows, rows),
                rates=tuple(lambda _, update, c=c: learning_rate(c, update) for c in exact),
                clips=tuple(lambda norm, _, c=c: clip_factor(norm, c.optimizer.clip) for c in exact),
                moments=groups or None,
                begun=(at.update, at.applied),
            )
        on = "the run's own rows" if real else "random rows (the run's data can't be read here)"
        return found, f"both stacks in float64, replayed from {start} on {on}, {len(rows)} updates"


def _small(config: RunConfig, rows: int, precision: str) -> RunConfig:
    """The run's config for a few rows of its batches, on the CPU, in `precision`."""
    parts = min(config.train.accumulation, MICRO_BATCHES)
    changes: dict[str, dict[str, Any]] = {
        "train": {"batch_size": rows, "accumulation": parts if rows % parts == 0 else 1},
        "execution": {"device": "cpu", "compile": "off", "checkpoint_activations": "none"},
    }
    if precision != "float64":
        changes["execution"]["attention"] = "auto"
    sections = {name: getattr(config, name).model_copy(update=change) for name, change in changes.items()}
    return config.model_copy(update=sections)


def _rows(history: History, data: Data | None, at: Point) -> tuple[list[Batch], bool]:
    """(batches, whether they are the run's own): the first rows of the updates that follow a state."""
    config = history.own
    rows = min(config.train.batch_size, MICRO_BATCHES * ROWS)
    left = max(1, min(REPLAYED, config.train.updates - at.update))
    if data is None:
        return batches(config.changed(train__batch_size=rows), left), False
    updates = updates_of(data, config)
    return [updates.batch(history.data_index(at.update + n)).rows(slice(rows)) for n in range(left)], True

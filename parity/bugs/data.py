"""Bugs in the order of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from coretrain.data.batch import Batch, windows
from coretrain.data.batches import Updates
from coretrain.data.order import Int64s, Stage, rows_of_update
from coretrain.data.splits import Data, Split
from parity.gates import ROWS, SETS
from parity.mutants import LLAMA, Patch, mutant, wrap
from parity.probes.sides import Side


class _Short(Split):
    def windows(self, context: int) -> int:
        return super().windows(context) - 1


class _Shifted(Split):
    def read(self, window: int, context: int) -> Any:
        row = super().read(window, context)
        whole = np.append(row.tokens, row.labels[-1:])
        return windows(np.roll(whole, -1))


@dataclass(frozen=True)
class _Repeating(Updates):
    def batch(self, update: int) -> Any:
        per_epoch = sum(split.windows(self.context) for split in self.splits) // self.batch_size
        return super().batch(update % per_epoch)


@dataclass(frozen=True)
class _Afresh(Updates):
    """What each part has read before its stage began is forgotten."""

    def rows(self, update: int) -> Int64s:
        begun = [Stage(0, self.weights), *self.stages]
        stage = max((one for one in begun if one.start <= update), key=lambda one: one.start)
        windows = [split.windows(self.context) for split in self.splits]
        at = update - stage.start
        return rows_of_update(windows, stage.weights, self.fingerprint, self.seed, at, self.batch_size)


def _updates(patch: Patch, s: Side, change: Callable[[Updates], Updates]) -> None:
    wrap(patch, s.data, "updates_of", lambda f: lambda *args: change(f(*args)))


def _splits(kind: type[Split]) -> Callable[[Updates], Updates]:
    return lambda u: dataclasses.replace(u, splits=tuple(kind(split.name, split.shards) for split in u.splits))


def _start(patch: Patch, s: Side, by: int) -> None:
    """A resume that begins `by` updates from where it should."""

    def batches(f: Any) -> Any:
        def moved(data: Data, config: Any, start: int = 0, **more: int) -> Iterator[Any]:
            return f(data, config, start + by if start else start, **more)

        return moved

    wrap(patch, s.trainer, "train_batches", batches)


def reverse(batch: Batch) -> Batch:
    """The rows from the last to the first."""
    return batch.rows(slice(None, None, -1))


@mutant("data", ROWS)
def rows_permuted_inside_a_batch(patch: Patch, s: Side) -> None:
    """The same rows in another order: no loss shows it, and dropout does."""
    wrap(patch, s.trainer, "train_batches", lambda f: lambda *args, **more: map(reverse, f(*args, **more)))


@mutant("data", ROWS)
def last_window_dropped(patch: Patch, s: Side) -> None:
    """range(len - 1): one window is never read."""
    _updates(patch, s, _splits(_Short))


@mutant("data", ROWS)
def windows_shifted_by_one_token(patch: Patch, s: Side) -> None:
    """Windows that begin at 1."""
    _updates(patch, s, _splits(_Shifted))


@mutant("data", ROWS)
def every_epoch_in_the_same_order(patch: Patch, s: Side) -> None:
    """set_epoch forgotten."""

    def repeat(u: Updates) -> Updates:
        return _Repeating(**{field.name: getattr(u, field.name) for field in dataclasses.fields(u)})

    _updates(patch, s, repeat)


@mutant("data", ROWS)
def order_of_another_seed(patch: Patch, s: Side) -> None:
    """The shuffle's seed isn't the run's."""
    _updates(patch, s, lambda u: dataclasses.replace(u, seed=u.seed + 1))


@mutant("data", ROWS)
def resume_replays_a_batch(patch: Patch, s: Side) -> None:
    """The cursor saved before it was raised."""
    _start(patch, s, -1)


@mutant("data", ROWS)
def resume_skips_a_batch(patch: Patch, s: Side) -> None:
    """The cursor saved after a prefetch."""
    _start(patch, s, 1)


def _staged(patch: Patch, s: Side, change: Callable[[Stage], Stage]) -> None:
    _updates(patch, s, lambda u: dataclasses.replace(u, stages=tuple(map(change, u.stages))))


@mutant("data", ROWS, LLAMA, probe="blend rows")
def switch_one_update_late(patch: Patch, s: Side) -> None:
    """The stage is looked up after the update."""
    _staged(patch, s, lambda stage: dataclasses.replace(stage, start=stage.start + 1))


@mutant("data", ROWS, LLAMA, probe="blend rows")
def rows_repeated_after_a_switch(patch: Patch, s: Side) -> None:
    """A loader made anew for each stage: replay begins at its first rows again."""

    def afresh(u: Updates) -> Updates:
        return _Afresh(**{field.name: getattr(u, field.name) for field in dataclasses.fields(u)})

    _updates(patch, s, afresh)


@mutant("data", ROWS, LLAMA, probe="blend rows")
def replay_ends_with_the_first_stage(patch: Patch, s: Side) -> None:
    """The target blend's weights leave the replayed part out."""
    _staged(patch, s, lambda stage: dataclasses.replace(stage, weights=(0.0, *stage.weights[1:])))


@mutant("data", SETS, LLAMA, probe="sets")
def last_batch_of_a_set_counts_as_whole(patch: Patch, s: Side) -> None:
    """The mean of the batches' means."""

    def evaluate(f: Any) -> Any:
        return lambda self, batch: f(self, batch) * self.config.train.batch_size / len(batch)

    wrap(patch, s.trainer.Trainer, "evaluate", evaluate)

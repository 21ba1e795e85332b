"""Bugs in the order of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from coretrain.data.batch import Batch, windows
from coretrain.data.batches import Updates
from coretrain.data.splits import Data, Split
from parity.gates import ROWS
from parity.mutants import Patch, mutant, wrap
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

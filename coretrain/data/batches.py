"""Prepared data opened for training: splits, windows, global batches, validation batches."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch, stacked
from coretrain.data.order import Int64s, Stage, parts_at, rows_of_update
from coretrain.data.splits import Data, Split


@dataclass(frozen=True)
class Updates:
    """A run's training batches by update: item n is rows [start, stop) of update n's global batch.

    Random access, so that grain and torch's DataLoader can carry it; made by `updates_of`, cheap to send to a worker.
    """

    splits: tuple[Split, ...]
    weights: tuple[float, ...]
    fingerprint: str
    seed: int
    context: int
    batch_size: int
    start: int
    stop: int
    updates: int
    stages: tuple[Stage, ...] = ()

    def __len__(self) -> int:
        return self.updates

    def __getitem__(self, update: SupportsIndex) -> Batch:
        number = operator.index(update)
        if not 0 <= number < self.updates:
            raise IndexError(f"update {number} of {self.updates}")
        return self.batch(number)

    def batch(self, update: int) -> Batch:
        """Item `update`, also beyond the run's last; only these rows are read."""
        rows = self.rows(update)[self.start : self.stop]
        return stacked([self.splits[part].read(int(window), self.context) for part, window in rows])

    def rows(self, update: int) -> Int64s:
        """The rows of update n's global batch as pairs (part, window), int64 [B, 2]."""
        windows = [split.windows(self.context) for split in self.splits]
        return rows_of_update(windows, self.weights, self.fingerprint, self.seed, update, self.batch_size, self.stages)


def updates_of(
    data: Data, config: RunConfig, process_index: int = 0, process_count: int = 1, updates: int | None = None
) -> Updates:
    """The batches of process p of n: rows [p x B/n, (p+1) x B/n) of each global batch, for so many `updates`.

    By default for `train.updates`. Raises `UserError` when n does not divide B.
    """
    batch_size = config.train.batch_size
    if batch_size % process_count:
        raise UserError(
            "data/batch-size-not-divisible",
            f"train.batch_size = {batch_size} can't be shared by {process_count} processes: "
            f"make it a multiple of {process_count}",
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")
    share = batch_size // process_count
    return Updates(
        tuple(part.train for part in data.parts),
        data.weights,
        data.fingerprint,
        config.train.seed,
        config.row_tokens,
        batch_size,
        process_index * share,
        (process_index + 1) * share,
        config.train.updates if updates is None else updates,
        data.stages,
    )


def global_batch(data: Data, config: RunConfig, update: int) -> Batch:
    """The global batch of an update. A pure function."""
    return updates_of(data, config).batch(update)


def validation_batches(data: Data, config: RunConfig) -> list[Batch]:
    """The validation set: the first windows, the same every time; a mixture's in its proportions.

    At most `train.eval_batches` batches of `train.batch_size` rows; fewer where the split has fewer.
    """
    context, batch_size = config.row_tokens, config.train.batch_size
    rows = [data.parts[part].validation.read(window, context) for part, window in validation_rows(data, config)]
    if not rows:
        raise UserError(
            "data/context-exceeds-validation",
            f"model.context = {context} is longer than the validation split of {data.validation.tokens} "
            "tokens: lower it, or raise data.validation_fraction",
        )
    return [stacked(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]


def validation_rows(data: Data, config: RunConfig) -> list[tuple[int, int]]:
    """The rows of the validation set as pairs (part, window), in order."""
    windows = [part.validation.windows(config.row_tokens) for part in data.parts]
    parts, counts = parts_at(np.arange(config.train.eval_batches * config.train.batch_size), data.weights)
    places = zip(parts.tolist(), counts.tolist(), strict=True)
    return [(part, count) for part, count in places if count < windows[part]]


def validation_bytes_per_token(data: Data, config: RunConfig) -> float:
    """Bytes of text a label of `validation_batches` stands for, exactly; bits per byte = loss / ln 2 / this."""
    lengths = data.tokenizer.byte_lengths()
    labels = np.concatenate([batch.labels.ravel() for batch in validation_batches(data, config)])
    labels = labels[labels != IGNORED]
    return float(lengths[labels].sum(dtype=np.int64) / len(labels))

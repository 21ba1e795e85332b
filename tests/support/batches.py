"""Batches for tests that look at the stacks and not at data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch, windows

COUNTING = windows(np.arange(100, dtype=np.int32).reshape(4, 25))
"""Four rows of 24 tokens that count up, for `small_config`."""


def random_text(config: RunConfig, rows: int | None = None, seed: int = 0) -> Batch:
    """A batch of random tokens of the whole vocabulary, by default as many rows as an update has."""
    shape = (config.train.batch_size if rows is None else rows, config.model.context + 1)
    return windows(np.random.default_rng(seed).integers(0, config.model.vocabulary, shape, dtype=np.int32))


def arrays_of(batch: Batch) -> dict[str, np.ndarray]:
    """The arrays that a batch has, by name, its planes among them."""
    own = {name: array for name, array in vars(batch).items() if array is not None and name != "planes"}
    return {**own, **batch.planes}


def with_array(batch: Batch, name: str, array: np.ndarray) -> Batch:
    """The batch with another array of one name."""
    return replace(batch, **{"planes": {**batch.planes, name: array}} if name in batch.planes else {name: array})


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches have the same arrays, shapes and dtypes included."""
    ours, theirs = arrays_of(one), arrays_of(other)
    return ours.keys() == theirs.keys() and all(
        array.dtype == theirs[name].dtype and np.array_equal(array, theirs[name]) for name, array in ours.items()
    )

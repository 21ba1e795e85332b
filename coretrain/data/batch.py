"""A batch of rows on its way from the loader to the loss: its form, its hash, how it is cut and how it is padded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""Label of a position that is no target."""


@dataclass(frozen=True)
class Batch:
    """Rows of tokens [B, T] and what is to be predicted at each. On the host its arrays are numpy's, later a stack's.

    `labels[b, t]` is the id that follows `tokens[b, t]`, or `IGNORED` where there is no target.
    """

    tokens: Any
    """Token ids, int32 [B, T]."""
    labels: Any
    """Ids to be predicted, int32 [B, T]."""
    positions: Any = None
    """Of packed rows, int32 [B, T]: a token's place in its own sample, whose tokens alone it sees. None: its place in
    the row."""
    weights: Any = None
    """What each target counts, float32 [B, T], in the sum of losses and in the number of targets. None: 1."""
    segments: Any = None
    """Number in its row of the sequence that a token belongs to, int32 [B, T]; -1 where it belongs to none. Of pairs
    2p is the chosen answer of pair p, with its prompt before it, and 2p + 1 the rejected one. None: one sequence."""
    planes: Mapping[str, Any] = field(default_factory=dict)
    """Further numbers of an objective, by name, rows first: [B, T], or [B, n] of the n sequences or pairs that a row
    can have (`coretrain.alignment.planes` says which). They are the whole of what a token, sequence or pair counts."""

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, change: Callable[[Any], Any]) -> Batch:
        """`change` of each array that is there."""
        arrays = {name: None if array is None else change(array) for name, array in _arrays(self).items()}
        return Batch(**arrays, planes={name: change(plane) for name, plane in self.planes.items()})

    def rows(self, part: slice) -> Batch:
        """Some of the rows."""
        return self.map(lambda array: array[part])

    def cut(self, rows: int) -> Iterator[Batch]:
        """Pieces of so many rows, in order; the last may have fewer."""
        return (self.rows(slice(start, start + rows)) for start in range(0, len(self), rows))

    def padded(self, rows: int) -> Batch:
        """On the host: with rows of zeros without a target behind its own, `rows` in all."""
        missing = rows - len(self)
        if missing == 0:
            return self
        padded = self.map(lambda array: np.pad(array, ((0, missing), (0, 0))))
        padded.labels[len(self) :] = IGNORED
        if padded.segments is not None:
            padded.segments[len(self) :] = -1
        return padded

    def with_planes(self, wide: bool = False, **planes: npt.ArrayLike) -> Batch:
        """On the host: with more planes, as float32 [rows, ...], or float64 where `wide` (precision.compute)."""
        dtype = np.float64 if wide else np.float32
        more = {name: np.ascontiguousarray(plane, dtype) for name, plane in planes.items()}
        return replace(self, planes={**self.planes, **more})

    @property
    def targets(self) -> int:
        """Labels that are to be predicted."""
        return int((self.labels != IGNORED).sum())

    @property
    def target_weight(self) -> float:
        """What all targets count together: their mean loss is the sum of losses over this."""
        if self.weights is None:
            return self.targets
        return float(np.where(self.labels != IGNORED, self.weights, 0).sum(dtype=np.float64))


def _arrays(batch: Batch) -> dict[str, Any]:
    return {each.name: getattr(batch, each.name) for each in fields(batch) if each.name != "planes"}


def windows(rows: npt.NDArray[np.integer[Any]]) -> Batch:
    """Rows of running text, [B, T + 1] or one [T + 1]: all but the last are inputs, all but the first are labels."""
    return Batch(rows[..., :-1], rows[..., 1:])


def stacked(rows: Sequence[Batch]) -> Batch:
    """A batch of single rows, all of one kind."""
    there = [name for name, array in _arrays(rows[0]).items() if array is not None]
    arrays: dict[str, Any] = {name: np.stack([getattr(row, name) for row in rows]) for name in there}
    return Batch(**arrays, planes={name: np.stack([row.planes[name] for row in rows]) for name in rows[0].planes})


def batch_hash(batch: Batch) -> str:
    """16 hex digits of a batch's content, row order included: equal logs mean equal batches."""
    if batch.positions is None and np.array_equal(batch.labels[:, :-1], batch.tokens[:, 1:]):
        whole = np.concatenate([batch.tokens, batch.labels[:, -1:]], 1)  # windows of running text
    else:
        whole = np.stack([array for array in (batch.tokens, batch.labels, batch.positions) if array is not None], 1)
    digest = hashlib.blake2b(np.ascontiguousarray(whole, "<i4").tobytes(), digest_size=8, person=b"batch")
    if batch.weights is not None:
        digest.update(np.ascontiguousarray(batch.weights, "<f4").tobytes())
    if batch.segments is not None:
        digest.update(np.ascontiguousarray(batch.segments, "<i4").tobytes())
    for name in sorted(batch.planes):
        digest.update(name.encode() + np.ascontiguousarray(batch.planes[name], "<f4").tobytes())
    return digest.hexdigest()

"""Conversations packed into rows of context tokens: several to a row, none cut.

A packed row has positions: each token's place in its own sample, which says where the sample begins too. What is left
of a row is a sample of zeros without a target.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.data.batch import IGNORED, Batch
from coretrain.data.chat import DROPPED
from coretrain.data.shards import Shard
from coretrain.data.splits import Split


def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Which samples share a row: in their order, each goes to the fullest row that still has room for it (best fit).

    Of several as full as that, the one that came to be so last. `lengths` are in [1, context].
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # those that some row has, ascending
    for sample, length in enumerate(lengths):
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), context
            rows.append([])
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[at]
        rows[row].append(sample)
        if left := room - length:
            same = open_rows.setdefault(left, [])
            if not same:
                insort(rooms, left)
            same.append(row)
    return rows


class PackedSplit(Split):
    """A split of conversations, whose windows are packed rows of `context` tokens."""

    def __init__(self, name: str, shards: Sequence[Shard], context: int) -> None:
        super().__init__(name, shards)
        self.context = context

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedSplit, (self.name, self.shards, self.context)

    def like(self, shards: Sequence[Shard]) -> Split:
        """A split of the same kind over other shards."""
        return PackedSplit(self.name, shards, self.context)

    @cached_property
    def _samples(self) -> npt.NDArray[np.int64]:
        """Shard, first and last fact's place of every sample, int64 [n, 3]; without those that were dropped."""
        found = []
        for number, shard in enumerate(self.shards):
            stops = shard.ends().astype(np.int64) - 1  # without the end of text
            starts = np.concatenate([[0], stops[:-1] + 1])
            found.append(np.stack([np.full(len(stops), number), starts, stops], 1)[stops - starts > 1])
        return np.concatenate([np.empty((0, 3), np.int64), *found])

    @cached_property
    def _rows(self) -> list[list[int]]:
        samples = self._samples
        return pack((samples[:, 2] - samples[:, 1] - 1).tolist(), self.context)

    def windows(self, context: int) -> int:
        """How many packed rows there are."""
        self._same(context)
        return len(self._rows)

    def read(self, window: int, context: int) -> Batch:
        """Packed row i, of arrays [T]."""
        if not 0 <= window < self.windows(context):
            raise IndexError(f"row {window} of {self.windows(context)} in {self.name}")
        tokens, labels, positions = np.zeros((3, context), np.int32)
        labels[:] = IGNORED
        at = 0
        for shard, start, stop in self._samples[self._rows[window]]:
            facts = np.asarray(self._map(shard)[start:stop]).astype(np.int32)
            ids, targets, n = facts >> 1, facts & 1, len(facts) - 1
            tokens[at : at + n] = ids[:-1]
            labels[at : at + n] = np.where(targets[1:], ids[1:], IGNORED)
            positions[at : at + n] = np.arange(n)
            at += n
        positions[at:] = np.arange(context - at)
        return Batch(tokens, labels, positions)

    def describe(self) -> str:
        """Samples, tokens, targets and how full the rows are, in words."""
        samples, rows = self._samples, len(self._rows)
        used = int((samples[:, 2] - samples[:, 1] - 1).sum())
        targets = sum(int((self._map(number) & 1).sum(dtype=np.int64)) for number in range(len(self.shards)))
        return (
            f"{len(samples):,} samples, {used:,} tokens, {targets:,} of them targets, in {rows:,} rows "
            f"({used / max(1, rows * self.context):.1%} full)" + self.dropped()
        )

    def dropped(self) -> str:
        """How many samples were dropped, and why, in words; nothing where none was."""
        counts: Counter[int] = Counter()
        for number, shard in enumerate(self.shards):
            stops = shard.ends().astype(np.int64) - 1
            lengths = np.diff(stops, prepend=-1) - 1
            counts[0] += int((lengths == 0).sum())
            counts.update(np.asarray(self._map(number)[stops[lengths == 1] - 1]).tolist())
        reasons = [f"{counts[fact]:,} {reason}" for fact, reason in DROPPED.items() if counts[fact]]
        return f"; samples dropped: {', '.join(reasons)}" if reasons else ""

    def _same(self, context: int) -> None:
        if context != self.context:
            raise ValueError(f"rows of {context} tokens asked for, packed for {self.context}")

"""Log-probabilities of the data's rows under a model that doesn't change: each row is scored once, and kept in memory.

What a row gets depends on the data order alone: it is scored with the batch in which it stands first, also where a
resumed run meets it in a later epoch and has kept nothing. So a resume is bit for bit what it would have been, though
the last bits of a row's scores may depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.data.batch import IGNORED, Batch
from coretrain.data.batches import Updates
from coretrain.data.order import rows_at

MOST = 2**31
"""Bytes of log-probabilities that are kept. The rows that come after them are scored each time, with the batch that
they are in."""
PIECE = 2**20
Int64s = npt.NDArray[np.int64]
Score = Callable[[Batch], npt.NDArray[Any]]
"""Log-probabilities of a batch's labels, [B, T]."""


def scored(score: Score, batch: Batch) -> npt.NDArray[Any]:
    """`score` of a batch, which it gets without what a scoring model doesn't read."""
    return np.asarray(score(Batch(batch.tokens, batch.labels, batch.positions)))


class FirstPlaces:
    """Where in the data order each row comes first."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates
        self.windows = [split.windows(updates.context) for split in updates.splits]
        self._first = [np.full(size, np.iinfo(np.int64).max) for size in self.windows]
        self._walked = 0

    def of_update(self, update: int) -> Int64s:
        """Of each row of an update's global batch, int64 [B]."""
        size = self.updates.batch_size
        while self._walked < (update + 1) * size:
            places = np.arange(self._walked, min((update + 1) * size, self._walked + PIECE))
            rows = self._rows_at(places)
            for part, first in enumerate(self._first):
                mine = rows[:, 0] == part
                np.minimum.at(first, rows[mine, 1], places[mine])
            self._walked += len(places)
        rows = self._rows_at(np.arange(update * size, (update + 1) * size))
        return np.array([self._first[part][window] for part, window in rows])

    def _rows_at(self, places: Int64s) -> Int64s:
        u = self.updates
        return rows_at(places, self.windows, u.weights, u.fingerprint, u.seed)


class Kept:
    """The scores of a run's rows: `score` of the labels of what `make` gives as the batch of an update."""

    def __init__(
        self, score: Score, updates: Updates, make: Callable[[int], Batch], wide: bool = False, most: int = MOST
    ) -> None:
        """`wide`: float64 (precision.compute), else float32."""
        self.score, self.updates, self.make = score, updates, make
        self.dtype = np.dtype(np.float64 if wide else np.float32)
        self.rows_kept = most // (updates.context * self.dtype.itemsize)
        self.first_places = FirstPlaces(updates)
        self._kept: dict[int, npt.NDArray[Any]] = {}  # by a row's first place

    def plane(self, update: int, batch: Batch) -> npt.NDArray[Any]:
        """Log-probabilities of the labels of an update's batch [B, T]; 0 where there is none."""
        firsts = self.first_places.of_update(update)
        known = min(self.rows_kept, update * len(batch))
        for first in firsts[firsts < known].tolist():
            if first not in self._kept:  # the run went on after it, and has kept nothing
                self._keep(first // len(batch), self.make(first // len(batch)))
        fresh = self._keep(update, batch) if (firsts >= known).any() else None
        plane = np.zeros(batch.labels.shape, self.dtype)
        for place, (first, labels) in enumerate(zip(firsts.tolist(), batch.labels, strict=True)):
            learnt = labels != IGNORED
            if first < self.rows_kept:
                plane[place, learnt] = self._kept[first]
            elif fresh is not None:
                plane[place, learnt] = fresh[place, learnt]
        return plane

    def _keep(self, update: int, batch: Batch) -> npt.NDArray[Any]:
        """The scores of an update's batch; those of the rows that come in no earlier place are kept."""
        fresh = scored(self.score, batch).astype(self.dtype, copy=False)
        for place, first in enumerate(self.first_places.of_update(update).tolist()):
            if first == update * len(batch) + place and first < self.rows_kept:
                self._kept[first] = fresh[place, batch.labels[place] != IGNORED]
        return fresh

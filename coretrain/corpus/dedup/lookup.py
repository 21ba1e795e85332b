"""Which of many hashes are among some others: a table of leading bits first, which most don't pass, then a search."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.dedup.words import Hashes, Places

MOST_BITS = 26


@dataclass(frozen=True)
class Lookup:
    """Hashes [N] to look for, sorted; a hash may be there several times."""

    hashes: Hashes

    def find(self, values: Hashes) -> tuple[Places, Places, Places]:
        """Which of `values` are there, and where in `hashes` they begin and end."""
        where = np.flatnonzero(self._some[self._leading(values)])
        low = np.searchsorted(self.hashes, values[where])
        there = low < len(self.hashes)
        there[there] = self.hashes[low[there]] == values[where[there]]
        where, low = where[there], low[there]
        return where, low, np.searchsorted(self.hashes, values[where], "right")

    @functools.cached_property
    def _bits(self) -> int:
        """So many that 1 of 16 random hashes passes, or fewer, unless there are very many to look for."""
        return min(MOST_BITS, max(8, len(self.hashes).bit_length() + 4))

    @functools.cached_property
    def _some(self) -> NDArray[np.bool_]:
        some = np.zeros(1 << self._bits, np.bool_)
        some[self._leading(self.hashes)] = True
        return some

    def _leading(self, values: Hashes) -> Places:
        leading: Places = (values >> np.uint64(64 - self._bits)).astype(np.int64)
        return leading

"""Filters: limits on signals. They read no text, so that other limits can be tried without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.document import Signal


@dataclass(frozen=True)
class Rule:
    """A document is kept where `least <= signal <= most`."""

    name: str
    """As a user types it: `gopher.min_words`."""
    signal: str
    meaning: str
    """In words, for the report: "fewer than 50 words"."""
    least: float | None = None
    most: float | None = None
    source: str = ""
    """Where the limit is from."""

    def keeps(self, signals: Mapping[str, Signal]) -> NDArray[np.bool_]:
        """Which documents it keeps. A signal that wasn't computed (NaN) says nothing against a document."""
        values = signals[self.signal]
        kept = np.ones(len(values), dtype=np.bool_)
        if self.least is not None:
            kept &= ~(values < self.least)
        if self.most is not None:
            kept &= ~(values > self.most)
        return kept


def first_broken(rules: Sequence[Rule], signals: Mapping[str, Signal], count: int) -> NDArray[np.int32]:
    """For each of `count` documents the index of the first rule that drops it; -1 where all keep it."""
    broken = np.full(count, -1, dtype=np.int32)
    for index, rule in enumerate(rules):
        broken[(broken < 0) & ~rule.keeps(signals)] = index
    return broken

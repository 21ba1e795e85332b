"""Spans of characters that belong to documents: words, lines, paragraphs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Spans:
    """Spans [n] of D documents, in their order."""

    starts: Ints
    """[n] Where each begins among all characters."""
    ends: Ints
    """[n] Where it ends; the character there is no longer part of it."""
    first: Ints
    """[D + 1] The first span of each document; the last entry is n."""

    @cached_property
    def lengths(self) -> Ints:
        """[n] Characters."""
        return self.ends - self.starts

    @cached_property
    def counts(self) -> Ints:
        """[D] Spans of each document."""
        return np.diff(self.first)

    @cached_property
    def documents(self) -> Ints:
        """[n] The document that each belongs to."""
        return np.repeat(np.arange(len(self.first) - 1), self.counts)

    def sum(self, values: NDArray[Any]) -> Ints:
        """[D] The sum of whole numbers or truth values [n] over each document's spans."""
        sums = np.zeros(len(values) + 1, np.int64)
        np.cumsum(values, out=sums[1:])
        return np.diff(sums[self.first])

    def only(self, kept: Mask) -> Spans:
        """Those where `kept` [n] is true."""
        before = np.zeros(len(kept) + 1, np.int64)
        np.cumsum(kept, out=before[1:])
        return Spans(self.starts[kept], self.ends[kept], before[self.first])


def sums_within(spans: Spans, mask: Mask) -> Ints:
    """[n] How many characters of each span are true in `mask` [N]."""
    sums = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask, out=sums[1:])
    return sums[spans.ends] - sums[spans.starts]


def between(starts: Ints, ends: Ints, cut_starts: Ints, cut_ends: Ints) -> Spans:
    """What lies between the cuts: of each document [starts, ends) one span more than it has cuts.

    Cuts lie within documents, in order, and don't overlap.
    """
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(1 + _cuts_of(starts, ends, cut_starts, cut_ends))])
    begins = np.empty(first[-1], np.int64)
    stops = np.empty(first[-1], np.int64)
    is_first = np.zeros(first[-1], np.bool_)
    is_first[first[:-1]] = True
    is_last = np.zeros(first[-1], np.bool_)
    is_last[first[1:] - 1] = True
    begins[is_first], begins[~is_first] = starts, cut_ends
    stops[is_last], stops[~is_last] = ends, cut_starts
    return Spans(begins, stops, first)


def _cuts_of(starts: Ints, ends: Ints, cut_starts: Ints, cut_ends: Ints) -> Ints:
    return np.searchsorted(cut_ends, ends, side="right") - np.searchsorted(cut_starts, starts)


def runs(mask: Mask, begins: Mask) -> tuple[Ints, Ints]:
    """Starts and ends of the runs of true characters; a run ends where a document `begins` [N]."""
    before = np.zeros(len(mask), np.bool_)
    before[1:] = mask[:-1] & ~begins[1:]
    after = np.zeros(len(mask), np.bool_)
    after[:-1] = mask[1:] & ~begins[1:]
    return np.flatnonzero(mask & ~before), np.flatnonzero(mask & ~after) + 1

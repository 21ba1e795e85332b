"""64-bit hashes of spans of characters: a polynomial modulo 2^64 whose prefix sums give every span's hash at once.

Equal spans have equal hashes on every machine. Different spans meet with a chance of about 2^-64; somebody who writes
a text to that end can make some meet, and changes a count of that text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
STEP = np.uint64(0xD6E8FEB86659FD93)
"""What one n-gram's hash is multiplied by before the next word comes."""
OF_DOCUMENT = np.uint64(0xA0761D6478BD642F)
"""A document's number times this is added to its words, so that n-grams of two documents differ."""


def mixed(values: Hashes) -> Hashes:
    """Each value's bits spread over all 64: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    out = values + np.uint64(_BASE)
    out ^= out >> np.uint64(30)
    out *= np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(27)
    out *= np.uint64(0x94D049BB133111EB)
    out ^= out >> np.uint64(31)
    return out


@cache
def _values() -> Hashes:
    return mixed(np.arange(0x110000, dtype=np.uint64))


class _Powers:
    """Powers of a number modulo 2^64, as many as were needed so far."""

    def __init__(self, base: int) -> None:
        self.base = np.uint64(base)
        self.table = np.ones(1, np.uint64)

    def upto(self, count: int) -> Hashes:
        """The first `count` powers."""
        if len(self.table) < count:
            factors = np.full(max(count, 2 * len(self.table)), self.base, np.uint64)
            factors[0] = 1
            self.table = np.cumprod(factors)
        return self.table[:count]


_powers, _inverses = _Powers(_BASE), _Powers(_INVERSE)


class Prefixes:
    """Prefix sums over code points [N]; then a span's hash costs two look-ups."""

    def __init__(self, points: NDArray[np.uint32]) -> None:
        self.sums = np.zeros(len(points) + 1, np.uint64)
        np.cumsum(_values()[points] * _powers.upto(len(points)), out=self.sums[1:])

    def hashes(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
        """The hash of each span [starts, ends), the same wherever it stands."""
        sums = (self.sums[ends] - self.sums[starts]) * _inverses.upto(len(self.sums))[starts]
        return mixed(sums + (ends - starts).astype(np.uint64) * STEP)


def hashes_of(words: Sequence[str]) -> Hashes:
    """The hashes of whole strings [n], equal to those of the same words in a text."""
    points = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), dtype=np.int64)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(words)]
    return Prefixes(points).hashes(starts, ends)

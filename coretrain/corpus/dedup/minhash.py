"""MinHash signatures: for each of many orders of all hashes, which of a document's shingles comes first.

Two documents agree in a place of their signatures with a chance that is their Jaccard similarity. Rows of a signature
are taken together in bands, and two documents are compared where a whole band of theirs agrees.
Source: Broder 1997; bands: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.corpus.dedup.shingles import Shingling, shingles
from coretrain.corpus.dedup.words import Hashes, Ragged, folded, mixed

COUNTINGS = ("fast", "datatrove")
PRIME = np.uint64(2**61 - 1)
BLOCK = {"fast": 16384, "datatrove": 2048}
"""Shingles whose places are computed in one go, for one order after another: they stay in the cache."""
SHOWN = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_MIX = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class MinHash:
    """How near-duplicates are looked for. Raises `UserError` naming a field that makes no sense."""

    shingling: Shingling = field(default_factory=Shingling)
    bands: int = field(default=14, metadata={"meaning": "14 x 8: FineWeb; 9 x 13: SlimPajama; 450 x 20: RefinedWeb"})
    rows: int = field(default=8, metadata={"meaning": "rows of a band"})
    seed: int = field(default=1, metadata={"meaning": "of the orders"})
    threshold: float = field(
        default=0.7, metadata={"meaning": "Jaccard similarity of the true shingles from which two are duplicates"}
    )
    counting: str = field(
        default="fast",
        metadata={
            "meaning": "datatrove: xxhash64 of the words and orders as that library has them, several times slower"
        },
    )

    def __post_init__(self) -> None:
        if self.counting not in COUNTINGS:
            raise UserError(
                "corpus/minhash-counting-unknown",
                f"{meant(str(self.counting), COUNTINGS)}dedup.counting = {shown(self.counting)}: use one of "
                f"{', '.join(COUNTINGS)}",
            )
        for name, most in (("bands", 1000), ("rows", 1000)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(
                    "corpus/minhash-number", f"dedup.{name} = {shown(getattr(self, name))}: give 1 to {most}"
                )
        if not 0 <= self.seed < 2**32:
            raise UserError("corpus/minhash-seed", f"dedup.seed = {shown(self.seed)}: give 0 to {2**32 - 1}")
        if not 0 < self.threshold <= 1:
            raise UserError(
                "corpus/minhash-threshold",
                f"dedup.threshold = {shown(self.threshold)}: give a similarity above 0 and at most 1",
            )

    @property
    def orders(self) -> int:
        """Numbers in a signature."""
        return self.bands * self.rows

    @property
    def described(self) -> str:
        """All that a signature depends on: signatures with other words here can't be compared."""
        return f"{self.shingling.described}, {self.bands} x {self.rows}, seed {self.seed}, {self.counting}"


def chance(similarity: float, bands: int, rows: int) -> float:
    """That two documents of this Jaccard similarity are compared."""
    return float(1.0 - (1.0 - similarity**rows) ** bands)


def chances(form: MinHash) -> str:
    """What to know before it runs: the chance of finding a pair, for some similarities, and where it passes a half."""
    cells = ", ".join(f"{chance(one, form.bands, form.rows):.1%} at {one:g}" for one in SHOWN)
    half = (1 - 0.5 ** (1 / form.bands)) ** (1 / form.rows)
    words = f"{form.bands} bands of {form.rows} rows find {cells} of the pairs; half of them at {half:.2f}"
    below = chance(form.threshold, form.bands, form.rows)
    return f"{words}. Of pairs just at the threshold, {form.threshold:g}, {below:.1%} are found"


def signatures(found: Ragged, form: MinHash) -> NDArray[Any]:
    """Signatures [D, bands * rows] of documents by their shingles: uint32, or uint64 as datatrove counts.

    A document without shingles has the largest number everywhere.
    """
    dtype: np.dtype[Any] = np.dtype(np.uint32 if form.counting == "fast" else np.uint64)
    largest = 2 ** (8 * dtype.itemsize) - 1
    result = np.full((form.orders, len(found.starts) - 1), largest, dtype)
    some = np.flatnonzero(found.counts)
    starts = found.starts[:-1][some]  # each its own: reduceat takes no empty ones
    values = (found.values >> np.uint64(32)).astype(np.uint32) if dtype == np.uint32 else found.values
    best = np.full((form.orders, len(some)), largest, dtype)
    step, place = BLOCK[form.counting], _place(form)
    for begin in range(0, len(values), step):
        block = values[begin : begin + step]
        first = int(np.searchsorted(starts, begin, "right")) - 1
        last = int(np.searchsorted(starts, begin + len(block)))
        local = np.maximum(starts[first:last] - begin, 0)
        place(block, local, best[:, first:last])
    result[:, some] = best
    return np.ascontiguousarray(result.T)


Place = Callable[[NDArray[Any], NDArray[np.int64], NDArray[Any]], None]


def _place(form: MinHash) -> Place:
    """Lowers what a block's documents have so far to the smallest of their shingles, for each order."""
    a, b = _orders(form)

    def fast(block: NDArray[Any], local: NDArray[np.int64], best: NDArray[Any]) -> None:
        moved = np.empty_like(block)
        for order in range(len(a)):
            np.multiply(block, a[order], out=moved)
            np.add(moved, b[order], out=moved)
            np.minimum(best[order], np.minimum.reduceat(moved, local), out=best[order])

    def datatrove(block: NDArray[Any], local: NDArray[np.int64], best: NDArray[Any]) -> None:
        moved = np.empty_like(block)
        for order in range(len(a)):
            np.multiply(block, a[order], out=moved)
            np.add(moved, b[order], out=moved)  # mod 2^64 first, as its uint64 do
            np.remainder(moved, PRIME, out=moved)
            np.minimum(best[order], np.minimum.reduceat(moved, local), out=best[order])

    return fast if form.counting == "fast" else datatrove


def _orders(form: MinHash) -> tuple[NDArray[Any], NDArray[Any]]:
    """Factors and summands [bands * rows]."""
    if form.counting == "datatrove":
        draw = np.random.RandomState(form.seed)  # as that library draws them
        a = draw.randint(1, int(PRIME), dtype=np.uint64, size=form.orders)
        return a, draw.randint(0, int(PRIME), dtype=np.uint64, size=form.orders)
    steps = np.arange(1, 2 * form.orders + 1, dtype=np.uint64) + np.uint64(form.seed << 32)
    numbers = (mixed(steps * _MIX) >> np.uint64(32)).astype(np.uint32).reshape(2, -1)
    return numbers[0] | np.uint32(1), numbers[1]


def sign(texts: Sequence[str], form: MinHash) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Signatures of `texts`, and which of them have one: the others have too few words."""
    if form.counting == "datatrove":
        found = datatrove_shingles([one.split() for one in folded(texts)], form.shingling.n)
    else:
        found = shingles(texts, form.shingling)
    return signatures(found, form), found.counts > 0


def datatrove_shingles(words: Sequence[Sequence[str]], n: int, hashed: str = "xxhash64") -> Ragged:
    """Hashes of documents' n-grams of `words` as datatrove has them: of the words joined with a blank, in UTF-8.

    `hashed` is xxhash64, or sha1 (its first 8 bytes, little-endian).
    """
    hash_of = _xxhash64() if hashed == "xxhash64" else _sha1
    values = [[hash_of(" ".join(one[k : k + n]).encode()) for k in range(len(one) - n + 1)] for one in words]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in values], dtype=np.int64)])
    return Ragged(np.array([one for document in values for one in document], np.uint64), starts.astype(np.int64))


def _sha1(raw: bytes) -> int:
    return int.from_bytes(hashlib.sha1(raw).digest()[:8], "little")


@functools.cache
def _xxhash64() -> Callable[[bytes], int]:
    try:
        from xxhash import xxh64_intdigest
    except ImportError:
        raise UserError(
            "corpus/xxhash-missing",
            "dedup.counting = datatrove needs the package xxhash: pip install 'twintrain[corpus]', or use fast",
        ) from None
    hash_of: Callable[[bytes], int] = xxh64_intdigest
    return hash_of


def band_keys(signed: NDArray[Any], form: MinHash) -> Hashes:
    """One 64-bit key for each band of each signature [bands, D]: equal where all rows of the band are."""
    keys = np.zeros((form.bands, len(signed)), np.uint64)
    for band in range(form.bands):
        rows = signed[:, band * form.rows : (band + 1) * form.rows]
        for row in range(form.rows):
            keys[band] = mixed(keys[band] * _MIX + rows[:, row].astype(np.uint64) + np.uint64(1))
    return keys

"""Shingles: the n-grams of words or characters that a document is compared by, as sets of 64-bit hashes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.corpus.dedup.words import FOLDING, Ragged, folded, mixed, ngrams, words

UNITS = ("word", "character")
LONGEST = 1000


@dataclass(frozen=True)
class Shingling:
    """What a shingle is. Raises `UserError` for what can't be one."""

    n: int = field(default=5, metadata={"meaning": "how many in a row; 5 words: FineWeb, RefinedWeb"})
    unit: str = field(default="word", metadata={"meaning": "word or character; blanks are none of the characters"})

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UserError(
                "corpus/shingle-unit-unknown",
                f"{meant(str(self.unit), UNITS)}dedup.unit = {shown(self.unit)}: use one of {', '.join(UNITS)}",
            )
        if not 1 <= self.n <= LONGEST:
            raise UserError("corpus/shingle-length", f"dedup.n = {shown(self.n)}: give a number from 1 to {LONGEST}")

    @property
    def described(self) -> str:
        """All that a shingle's hash depends on."""
        return f"{self.n} {self.unit}s, {FOLDING}"


def shingles(texts: Sequence[str], shingling: Shingling) -> Ragged:
    """Hashes of each text's shingles, in their order, repeats included; none for a text that is too short for one."""
    return ngrams(words(texts).hashes if shingling.unit == "word" else characters(texts), shingling.n)


def characters(texts: Sequence[str]) -> Ragged:
    """Hashes of each text's folded characters, those between words left out."""
    plain = [one.replace(" ", "") for one in folded(texts)]
    starts = np.concatenate([[0], np.cumsum([len(one) for one in plain], dtype=np.int64)]).astype(np.int64)
    codes = np.frombuffer("".join(plain).encode("utf-32-le", "surrogatepass"), "<u4")
    return Ragged(mixed(codes.astype(np.uint64)), starts)


def as_sets(found: Ragged) -> Ragged:
    """The first 63 bits of each document's hashes, sorted, and each once."""
    owner = np.repeat(np.arange(len(found.starts) - 1), found.counts)
    values = found.values >> np.uint64(1)  # so that they are column numbers of a sparse matrix
    borders = found.starts.tolist()
    for begin, end in itertools.pairwise(borders):
        values[begin:end].sort()
    first = np.ones(len(values), np.bool_)
    first[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    counts = np.bincount(owner[first], minlength=len(found.starts) - 1)
    return Ragged(values[first], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

"""Verification: the Jaccard similarity of the true sets of shingles, of every pair that shares a band.

Sets are kept for those documents alone that are in a pair, in a file for each part: 8 bytes a shingle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.corpus.dedup.arrays import Arrays, read_arrays, write_arrays
from coretrain.corpus.dedup.minhash import MinHash
from coretrain.corpus.dedup.pairs import unpacked
from coretrain.corpus.dedup.parts import Parts, batched
from coretrain.corpus.dedup.shingles import as_sets, shingles
from coretrain.corpus.dedup.words import Hashes, Places, Ragged
from coretrain.corpus.document import Document

KIND = "shingles of documents"
SHINGLES_AT_A_TIME = 2**21


def wanted(parts: Parts, pairs: Hashes) -> list[Places]:
    """For each part the rows of its documents that are in a pair, sorted."""
    numbers = np.unique(np.concatenate(unpacked(pairs)))
    borders = np.searchsorted(numbers, parts.firsts)
    return [
        numbers[begin:end] - part.first for part, begin, end in zip(parts.parts, borders[:-1], borders[1:], strict=True)
    ]


def write_shingles(documents: Iterable[Document], rows: Places | None, path: Path, form: MinHash) -> None:
    """Write the sets of shingles of a part's documents `rows` (None: of all); `documents` are all of the part's."""
    values: list[Hashes] = []
    counts: list[Places] = []
    kept: list[Places] = []
    first = 0
    for batch in batched(documents):
        mine = np.arange(len(batch)) if rows is None else rows[np.searchsorted(rows, first) :] - first
        mine = mine[mine < len(batch)]
        sets = as_sets(shingles([batch[row].text for row in mine.tolist()], form.shingling))
        values.append(sets.values)
        counts.append(sets.counts)
        kept.append(mine + first)
        first += len(batch)
    arrays = {
        "values": np.concatenate([np.zeros(0, np.uint64), *values]),
        "starts": np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))]).astype(np.int64),
        "rows": np.concatenate([np.zeros(0, np.int64), *kept]),
    }
    write_arrays(path, KIND, {"described": form.shingling.described}, arrays)


@dataclass(frozen=True)
class Sets:
    """Sets of shingles of the documents of all parts, open."""

    parts: Parts
    files: tuple[Arrays, ...]

    def sizes(self, numbers: Places) -> Places:
        """How many shingles documents have."""
        result = np.zeros(len(numbers), np.int64)
        for index, mine, at in self._placed(numbers):
            starts = self.files[index]["starts"]
            result[mine] = starts[at + 1] - starts[at]
        return result

    def read(self, numbers: Places) -> Ragged:
        """The sets of some documents, sorted by their numbers."""
        values: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        for index, _, at in self._placed(numbers):
            held, starts = self.files[index]["values"], self.files[index]["starts"]
            begins, ends = starts[at].tolist(), starts[at + 1].tolist()
            values += [held[begin:end] for begin, end in zip(begins, ends, strict=True)]
        sizes = self.sizes(numbers)
        return Ragged(np.concatenate(values), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def _placed(self, numbers: Places) -> Iterator[tuple[int, NDArray[np.bool_], Places]]:
        """For each part: its index, which of the documents are its, and where their sets lie in its file."""
        owner = np.searchsorted(self.parts.firsts, numbers, "right") - 1
        for index in np.unique(owner).tolist():
            mine = owner == index
            rows = numbers[mine] - self.parts.parts[index].first
            held = self.files[index]["rows"]
            at = np.searchsorted(held, rows)
            if len(rows) and (at[-1] >= len(held) or not np.array_equal(held[at], rows)):
                raise UserError(
                    "corpus/shingles-missing",
                    f"{self.files[index].path} lacks documents that are to be compared: make it again",
                )
            yield index, mine, at


def open_sets(parts: Parts, paths: Sequence[Path], form: MinHash) -> Sets:
    """Open the files of shingles, one for each part, those known before in front. Raises `UserError`."""
    if len(paths) != len(parts.parts):
        raise ValueError(f"{len(paths)} files of shingles for {len(parts.parts)} parts")
    files = []
    for part, path in zip(parts.parts, paths, strict=True):
        files.append(read_arrays(path, KIND, sealed=part.known))
        if files[-1].facts.get("described") != form.shingling.described:
            raise UserError(
                "corpus/shingles-made-otherwise",
                f"{path} has other shingles than {form.shingling.described}: make it again, or set the same fields",
            )
    return Sets(parts, tuple(files))


def similarities(sets: Sets, pairs: Hashes) -> NDArray[np.float64]:
    """Jaccard similarity of each pair: shared shingles over all shingles of both. `pairs` are sorted."""
    left, right = unpacked(pairs)
    sizes = sets.sizes(left) + sets.sizes(right)
    result = np.zeros(len(pairs), np.float64)
    for begin, end in _slices(sizes, SHINGLES_AT_A_TIME):
        numbers = np.unique(np.concatenate([left[begin:end], right[begin:end]]))
        held = sets.read(numbers)
        one, two = np.searchsorted(numbers, left[begin:end]), np.searchsorted(numbers, right[begin:end])
        both = sizes[begin:end]
        shared = common(held, one, two)
        result[begin:end] = shared / np.maximum(both - shared, 1)
    return result


def common(sets: Ragged, left: Places, right: Places) -> Places:
    """How many numbers below 2^63 two of the `sets` have in common, for many pairs of them."""
    from scipy.sparse import csr_array

    columns = sets.values.astype(np.int64)  # a row has a one for each number of its set
    ones = np.ones(len(columns), np.int8)
    shape = (len(sets.starts) - 1, 2**63 - 1)
    rows = csr_array((ones, columns, sets.starts), shape=shape, copy=False)
    shared = rows[left].multiply(rows[right])
    counts: Places = np.diff(shared.indptr).astype(np.int64)
    return counts


def verified(sets: Sets, pairs: Hashes, threshold: float) -> NDArray[np.bool_]:
    """Which pairs are at least so similar."""
    reached: NDArray[np.bool_] = similarities(sets, pairs) >= threshold
    return reached


def _slices(sizes: Places, most: int) -> Iterator[tuple[int, int]]:
    """Consecutive pairs whose sizes add up to at most so many, or single ones."""
    ends, begin = np.cumsum(sizes), 0
    while begin < len(sizes):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + most, "right")))
        yield begin, end
        begin = end

"""Exact substrings that occur twice: at least 100 bytes, or 50 words, of a document that stand in another, or twice in
one. All copies but the first are cut out; the first is that of the smallest document, as everywhere.

A place is in such a substring where the window of that length around it occurs elsewhere. So all windows are hashed
(128 bits) and sorted, those of one range of hashes at a time: the same that a suffix array finds, and memory is bounded
by the number of ranges. Source: Lee et al. 2022, "Deduplicating training data makes language models better".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.corpus.dedup.arrays import read_arrays, write_arrays
from coretrain.corpus.dedup.keep import ranks
from coretrain.corpus.dedup.lookup import Lookup
from coretrain.corpus.dedup.parts import Parts, Table, batched, write_keys
from coretrain.corpus.dedup.words import FOLDING, Hashes, Places, Ragged, mixed, ngrams, windows, words
from coretrain.corpus.document import Document

KIND = "windows that occur twice"
UNITS = {"byte": 8, "word": 2}
"""The fewest in a window."""
BLOCK = 2**14
"""Windows that are hashed in one go: what is made of them stays in the cache."""
BATCH_CHARACTERS = 2**19
"""Of documents that are hashed together: each takes some 100 bytes."""
BYTES_A_WINDOW = 100
"""Memory that a window takes while its range is sorted."""
_OTHER = np.uint64(0xA0761D6478BD642F)


@dataclass(frozen=True)
class Substrings:
    """What counts as a copy. Raises `UserError`."""

    unit: str = field(default="byte", metadata={"meaning": "byte of UTF-8 as it stands, or word, folded"})
    n: int = field(default=100, metadata={"meaning": "100 bytes are about 50 tokens: Lee et al. 2022"})

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise UserError(
                "corpus/substring-unit-unknown",
                f"{meant(str(self.unit), UNITS)}dedup.substring_unit = {shown(self.unit)}: use one of "
                f"{', '.join(UNITS)}",
            )
        if not UNITS[self.unit] <= self.n <= 100_000:
            raise UserError(
                "corpus/substring-length",
                f"dedup.substring = {shown(self.n)}: give {UNITS[self.unit]} to 100,000 {self.unit}s",
            )

    @property
    def described(self) -> str:
        """All that a window's hash depends on."""
        return f"substrings of {self.n} {self.unit}s" + (f", {FOLDING}" if self.unit == "word" else "")


def list_part(documents: Iterable[Document], path: Path, form: Substrings) -> None:
    """Write who a part's documents are."""
    table = Table()
    for batch in batched(documents):
        table.add(batch)
    write_keys(path, form.described, table, np.zeros((0, 0), np.uint64), np.zeros(0, np.uint32))


def ranges(parts: Parts, memory: int) -> int:
    """How many ranges of hashes there must be, so that a task takes about `memory` bytes at most."""
    total = sum(int(part.data["bytes"].sum()) for part in parts.parts)
    return max(1, -(-total * BYTES_A_WINDOW // memory))


def repeats(
    parts: Parts,
    documents: Sequence[Callable[[], Iterable[Document]]],
    form: Substrings,
    path: Path,
    priority: Sequence[str] = (),
    piece: int = 0,
    pieces: int = 1,
) -> int:
    """Write the windows that occur more than once, of one of `pieces` ranges of hashes. Returns how many copies go.

    `documents` starts a pass over each part's documents, those known before in front.
    """
    first, second, numbers, places = _all_windows(parts, documents, form, piece, pieces)
    ordered = np.sort(first)
    order, _, _ = Lookup(ordered[_repeated(ordered)]).find(first)  # most windows go here
    order = order[np.lexsort((second[order], first[order]))]
    order = order[_repeated(first[order], second[order])]
    group = np.cumsum(_new(first[order], second[order]))
    owner, places = numbers[order].astype(np.int64), places[order]
    order = np.lexsort((places, ranks(parts, owner, priority), group))
    group, owner, places = group[order], owner[order], places[order]
    copy = np.zeros(len(group), np.bool_)
    copy[1:] = group[1:] == group[:-1]
    copy &= owner >= parts.known
    order = np.lexsort((places, owner))
    arrays = {"numbers": owner[order].astype(np.uint32), "places": places[order], "copies": copy[order]}
    write_arrays(path, KIND, {"described": form.described}, arrays)
    return int(copy.sum())


def _new(*columns: Hashes) -> NDArray[np.bool_]:
    """Which rows of sorted columns differ from the row before."""
    new = np.ones(len(columns[0]), np.bool_)
    if len(new):
        new[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return new


def _repeated(*columns: Hashes) -> NDArray[np.bool_]:
    """Which rows of sorted columns there are more than once."""
    new = np.append(_new(*columns), True)
    repeated: NDArray[np.bool_] = ~(new[:-1] & new[1:])
    return repeated


def _all_windows(
    parts: Parts, documents: Sequence[Callable[[], Iterable[Document]]], form: Substrings, piece: int, pieces: int
) -> tuple[Hashes, Hashes, NDArray[Any], NDArray[Any]]:
    """Two hashes, document and place of every window whose first hash is in the range."""
    low, high = np.uint64(2**64 * piece // pieces), np.uint64(2**64 * (piece + 1) // pieces - 1)
    found: list[tuple[NDArray[Any], ...]] = [(np.zeros(0, np.uint64),) * 2 + (np.zeros(0, np.uint32),) * 2]
    for part, opened in zip(parts.parts, documents, strict=True):
        number = part.first
        for batch in batched(opened(), BATCH_CHARACTERS):
            one, two = hashed([each.text for each in batch], form)
            mine = np.flatnonzero((one.values >= low) & (one.values <= high))
            owner = np.searchsorted(one.starts, mine, "right") - 1
            place = (mine - one.starts[owner]).astype(np.uint32)
            found.append((one.values[mine], two.values[mine], (owner + number).astype(np.uint32), place))
            number += len(batch)
    first, second, numbers, places = (np.concatenate([each[at] for each in found]) for at in range(4))
    return first, second, numbers, places


def hashed(texts: Sequence[str], form: Substrings) -> tuple[Ragged, Ragged]:
    """Two independent hashes of every window of each text, in their order."""
    if form.unit == "word":
        found = words(texts).hashes
        return ngrams(found, form.n), ngrams(Ragged(mixed(found.values ^ _OTHER), found.starts), form.n)
    raw = [one.encode("utf-8", "surrogatepass") for one in texts]
    sizes = np.array([len(one) for one in raw], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    counts = np.maximum(sizes - form.n + 1, 0)
    whole = np.concatenate([[0], np.cumsum(counts)])
    inside = np.arange(int(whole[-1])) + np.repeat(starts[:-1] - whole[:-1], counts)
    every = np.frombuffer(b"".join(raw), np.uint8)
    both = np.empty((2, max(0, len(every) - form.n + 1)), np.uint64)
    for begin in range(0, both.shape[1], BLOCK):
        end = min(begin + BLOCK, both.shape[1])
        both[:, begin:end] = _hashed_bytes(every[begin : end + form.n - 1], form.n)
    return Ragged(both[0][inside], whole), Ragged(both[1][inside], whole)


def _hashed_bytes(raw: NDArray[np.uint8], n: int) -> tuple[Hashes, Hashes]:
    """Two hashes of every window of n bytes: sums of hashes of 8 bytes in a row, so that no structure of text shows."""
    eight = raw.astype(np.uint64)
    for shift in (1, 2, 4):
        eight = eight[:-shift] | (eight[shift:] << np.uint64(8 * shift))
    return mixed(windows(mixed(eight), n - 7)), mixed(windows(mixed(eight ^ _OTHER), n - 7))


Spans = list[tuple[int, int]]
Text = TypeVar("Text", str, bytes)


def cuts(files: Sequence[Path], form: Substrings, first: int, count: int) -> list[Spans]:
    """What goes of each of `count` documents from number `first` on: begin and end, in units.

    `files` are those of all ranges. What lies in a copy goes, unless it is also in the first of other windows that
    occur twice.
    """
    numbers, places, copies = _windows_of(files, form, first, count)
    spans: list[Spans] = [[] for _ in range(count)]
    borders = np.searchsorted(numbers, np.arange(count + 1))
    for document in np.unique(numbers).tolist():
        begin, end = borders[document : document + 2]
        mine, copy = places[begin:end], copies[begin:end]
        gone = np.zeros(int(mine.max()) + form.n + 1, np.int64)
        for kind, weight in ((True, 1), (False, -len(mine) - 1)):
            np.add.at(gone, mine[copy == kind], weight)
            np.add.at(gone, mine[copy == kind] + form.n, -weight)
        inside = np.concatenate([[False], np.cumsum(gone) > 0, [False]])
        edges = np.flatnonzero(inside[1:] != inside[:-1]).tolist()
        spans[document] = list(zip(edges[::2], edges[1::2], strict=True))
    return spans


def _windows_of(files: Sequence[Path], form: Substrings, first: int, count: int) -> tuple[Places, Places, Any]:
    """Of some documents the windows of all files: document from 0, place, and whether it is a copy."""
    found: list[tuple[NDArray[Any], ...]] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))]
    for path in files:
        data = read_arrays(path, KIND)
        if data.facts.get("described") != form.described:
            raise UserError(
                "corpus/substrings-made-otherwise",
                f"{path} has other windows than {form.described}: make it again, or set the same fields",
            )
        begin, end = np.searchsorted(data["numbers"], [first, first + count])
        number = data["numbers"][begin:end].astype(np.int64) - first
        found.append((number, data["places"][begin:end].astype(np.int64), data["copies"][begin:end]))
    numbers, places, copies = (np.concatenate([one[at] for one in found]) for at in range(3))
    order = np.lexsort((places, numbers))
    return numbers[order], places[order], copies[order]


def edited(
    documents: Iterable[Document], files: Sequence[Path], form: Substrings, first: int, count: int
) -> Iterator[Document]:
    """A part's `count` documents, whose first one has the number `first`, without what goes."""
    for one, spans in zip(documents, cuts(files, form, first, count), strict=True):
        yield replace(one, text=without(one.text, spans, form)) if spans else one


def without(text: str, spans: Spans, form: Substrings) -> str:
    """The text without what goes. No character is cut in two: one that only in part lies in a copy stays."""
    if not spans:
        return text
    if form.unit == "word":
        found = words([text])
        begins, ends = found.begins.tolist(), found.ends.tolist()
        return _left(text, [(begins[begin], ends[end - 1]) for begin, end in spans])
    raw = text.encode("utf-8", "surrogatepass")
    whole = []
    for begin, end in spans:
        while begin < end and raw[begin] & 0xC0 == 0x80:  # within a character
            begin += 1
        while begin < end < len(raw) and raw[end] & 0xC0 == 0x80:
            end -= 1
        whole.append((begin, end))
    return _left(raw, whole).decode("utf-8", "surrogatepass")


def _left(text: Text, spans: Spans) -> Text:
    kept = [0, *(place for span in spans for place in span), len(text)]
    pieces = [text[begin:end] for begin, end in zip(kept[::2], kept[1::2], strict=True)]
    return text[:0].join(pieces)

"""Lines or paragraphs that occur in several documents, or twice in one: all copies but one are cut out.

A line's key is CCNet's: the first 8 bytes of the SHA-1 of the line in lower case, digits as 0, without control
characters and the punctuation of other scripts than ASCII. The copy that stays is that of the smallest document by
(priority of its source, hash of its text, id), the first one in it: CCNet keeps the one it sees first.
Source: Wenzek et al. 2020.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.corpus.dedup.bands import keys_within, slices
from coretrain.corpus.dedup.keep import ranks
from coretrain.corpus.dedup.parts import Parts, Table, batched, write_keys
from coretrain.corpus.dedup.words import Places
from coretrain.corpus.document import Document

UNITS = ("line", "paragraph")
_SEPARATORS = {"line": re.compile(r"\n"), "paragraph": re.compile(r"\n{2,}")}
_DIGIT = re.compile(r"\d")
_REMOVED = dict.fromkeys([*range(32), *range(127, 160)])
_REMOVED |= dict.fromkeys(
    map(
        ord,
        "\uff0c\u3002\u3001\u201e\u201d\u201c\xab\xbb\uff11\u300d\u300c\u300a\u300b\xb4\u2236\uff1a\uff1f\uff01\uff08\uff09"
        "\uff1b\u2013\u2014\uff0e\uff5e\u2019\u2026\u2501\u3008\u3009\u3010\u3011\uff05\u25ba",
    )
)
"""CCNet's list; U+FF11, a full-width 1, is in it."""


def described(unit: str) -> str:
    """All that a key depends on. Raises `UserError` for a unit that isn't known."""
    if unit not in UNITS:
        raise UserError(
            "corpus/line-unit-unknown",
            f"{meant(str(unit), UNITS)}dedup.unit = {shown(unit)}: use one of {', '.join(UNITS)}",
        )
    return f"{unit}s, SHA-1"


def line_key(line: str) -> int:
    """CCNet's key of a line; 0 where nothing is left of it: that is no line."""
    plain = _DIGIT.sub("0", line.strip().lower()).translate(_REMOVED)
    if not plain:
        return 0
    return int.from_bytes(hashlib.sha1(plain.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def spans(text: str, unit: str) -> list[tuple[int, int, int]]:
    """Begin and end of each line or paragraph, and the end of the separator after it."""
    found, begin = [], 0
    for separator in _SEPARATORS[unit].finditer(text):
        found.append((begin, separator.start(), separator.end()))
        begin = separator.end()
    return [*found, (begin, len(text), len(text))]


def lines_part(documents: Iterable[Document], path: Path, unit: str = "line") -> None:
    """Write the keys of all lines of a part's documents: 16 bytes a line, and which of its document it is."""
    made = described(unit)
    table = Table()
    found = [np.zeros((3, 0), np.uint64)]
    for batch in batched(documents):
        rows = [
            (key, row, place)
            for row, one in enumerate(batch, len(table))
            for place, (begin, end, _) in enumerate(spans(one.text, unit))
            if (key := line_key(one.text[begin:end]))
        ]
        found.append(np.array(rows, np.uint64).reshape(-1, 3).T)
        table.add(batch)
    keys, owners, places = np.concatenate(found, axis=1)
    more = {"places": places[np.argsort(keys, kind="stable")].astype(np.uint32)[None]}
    write_keys(path, made, table, keys[None], owners.astype(np.uint32), more)


@dataclass(frozen=True)
class Cut:
    """Lines that go, sorted: of each the document's number, and which of its lines it is."""

    numbers: Places
    places: Places

    def of(self, number: int) -> Places:
        """Those of one document."""
        begin, end = np.searchsorted(self.numbers, [number, number + 1])
        return self.places[begin:end]


def repeated(parts: Parts, priority: Sequence[str] = (), piece: int = 0, pieces: int = 1) -> Cut:
    """The copies that go, of the lines whose keys are in one of `pieces` ranges.

    Documents known before keep all of theirs.
    """
    keys, numbers = keys_within(parts, 0, piece, pieces)
    found = [part.data["places"][0][mine].astype(np.int64) for part, mine in slices(parts, 0, piece, pieces)]
    places = np.concatenate([np.zeros(0, np.int64), *found])
    order = np.lexsort((places, numbers, keys))
    keys, numbers, places = keys[order], numbers[order], places[order]
    starts = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.bool_)
    group = np.cumsum(starts) - 1
    shared = np.bincount(group)[group] > 1 if len(keys) else starts
    group, numbers, places = group[shared], numbers[shared], places[shared]
    order = np.lexsort((places, ranks(parts, numbers, priority), group))
    group, numbers, places = group[order], numbers[order], places[order]
    copy = np.zeros(len(group), np.bool_)
    copy[1:] = group[1:] == group[:-1]
    copy &= numbers >= parts.known
    return _sorted(numbers[copy], places[copy])


def joined(cuts: Sequence[Cut]) -> Cut:
    """What goes by several ranges of keys."""
    none = np.zeros(0, np.int64)
    return _sorted(
        np.concatenate([none, *(one.numbers for one in cuts)]), np.concatenate([none, *(one.places for one in cuts)])
    )


def without(text: str, unit: str, places: Places) -> str:
    """The text without those of its lines or paragraphs, nor the separators after them."""
    gone = set(places.tolist())
    if not gone:
        return text
    every = spans(text, unit)
    left = "".join(text[begin:after] for place, (begin, _, after) in enumerate(every) if place not in gone)
    return left.rstrip("\n") if len(every) - 1 in gone else left  # what separated the last one


def edited(documents: Iterable[Document], first: int, cut: Cut, unit: str) -> Iterator[Document]:
    """A part's documents, the first one being number `first`, without what goes; of some nothing may be left."""
    for number, one in enumerate(documents, first):
        places = cut.of(number)
        yield replace(one, text=without(one.text, unit, places)) if len(places) else one


def _sorted(numbers: Places, places: Places) -> Cut:
    order = np.lexsort((places, numbers))
    return Cut(numbers[order], places[order])

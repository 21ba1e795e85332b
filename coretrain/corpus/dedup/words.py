"""The words of many texts at once, as 64-bit hashes: lower case, numbers as 0, no punctuation, no accents.

What two texts that say the same may differ in is folded away: case, accents (NFD without its marks), punctuation,
blanks, and the digits of a number (a run of digits is one 0). In scripts written without blanks (Chinese, Japanese,
Thai, ...) each character is a word. Hangul is read as whole syllables: text that spells it in single letters is not
found to be the same. Which characters are letters is what Python's `unicodedata` says, so its version is part of
`FOLDING`.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

FOLDING = f"words-1, Unicode {unicodedata.unidata_version}"
"""Changes where words would be found or hashed otherwise: what was signed with one can't be compared with another."""
BETWEEN, DROPPED, ALONE = 0, 1, 1 << 24
"""Of a character: it separates words; it leaves no trace; and a bit: it is a word by itself."""
ZERO = ord("0")
BLOCK = 1 << 18
"""Characters that are looked at in one go: what is made of them stays in the cache."""
_LETTERS = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x20000, 0x2A6E0), (0x2A700, 0x2EBE1))
"""Code points that are letters and fold to themselves, many thousands at a time."""
_WITHOUT_BLANKS = (
    *((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0)),
    *((0x4E00, 0xA000), (0xF900, 0xFB00), (0x20000, 0x32000)),
)
"""Thai, Lao; Burmese; Khmer; Hiragana, Katakana; Chinese characters."""
_BASE, _INVERSE = np.uint64(0x9E3779B97F4A7C15), np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_STEP = np.uint64(0xD1342543DE82EF95)


@dataclass(frozen=True)
class Ragged:
    """Numbers [N] of many documents, one after another; those of document d are `starts[d]:starts[d + 1]`."""

    values: Hashes
    starts: Places

    @property
    def counts(self) -> Places:
        """How many a document has [D]."""
        return np.diff(self.starts)

    def of(self, document: int) -> Hashes:
        """Those of one document."""
        return self.values[self.starts[document] : self.starts[document + 1]]


@dataclass(frozen=True)
class Words:
    """The words of many texts: hashes [W], and where each lies in its text, in characters [W]."""

    hashes: Ragged
    begins: Places
    ends: Places


def words(texts: Sequence[str]) -> Words:
    """The words of `texts`, each text's in their order."""
    found = [_hashed(*piece) for piece in _pieces(texts)]
    hashes, begins, ends = (np.concatenate([one[i] for one in found]) if found else _none() for i in range(3))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    borders = np.concatenate([[0], np.cumsum(lengths + 1)])  # a line end between texts
    starts = np.searchsorted(begins, borders)
    shift = np.repeat(borders[:-1], np.diff(starts))
    return Words(Ragged(hashes.astype(np.uint64), starts), begins - shift, ends - shift)


def folded(texts: Sequence[str]) -> list[str]:
    """What is hashed of each text: its folded words with one blank between them."""
    return [" ".join(_folded_words(text)) for text in texts]


def _folded_words(text: str) -> Iterator[str]:
    for _, codes, first, _, _ in _pieces([text]):
        whole = (codes & ~np.uint32(ALONE)).astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        bounds = [*first.tolist(), len(whole)]
        yield from (whole[begin:end] for begin, end in itertools.pairwise(bounds))


def ngrams(hashes: Ragged, n: int) -> Ragged:
    """Hashes of each document's n-grams, in their order; of a document of fewer than n words there are none."""
    values, starts = hashes.values, hashes.starts
    kept = np.ones(len(values), np.bool_)
    for back in range(1, n):
        last = starts[1:] - back
        kept[last[last >= starts[:-1]]] = False
    kept = kept[: max(0, len(values) - n + 1)]
    counts = np.maximum(hashes.counts - (n - 1), 0)
    return Ragged(mixed(windows(values, n).take(np.flatnonzero(kept))), np.concatenate([[0], np.cumsum(counts)]))


def mixed(values: Hashes) -> Hashes:
    """Numbers whose bits depend on all bits of `values`, one to one. Source: splitmix64's last steps (Steele 2014)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def windows(values: Hashes, n: int) -> Hashes:
    """Sums of `n` values each, the k-th from the end times a constant to the power k: from windows of 1, 2, 4, ..."""
    size = len(values) - n + 1
    if size <= 0:
        return values[:0]
    total, covered = np.zeros(size, np.uint64), 0
    window, width, power = values, 1, int(_STEP)
    while True:
        if n & width:
            total = total * np.uint64(power) + window[covered : covered + size]
            covered += width
        if 2 * width > n:
            return total
        window = window[:-width] * np.uint64(power) + window[width:]
        width, power = 2 * width, power * power % 2**64


def _none() -> Places:
    return np.zeros(0, np.int64)


Piece = tuple[int, NDArray[np.uint32], Places, Places, Places]
"""Characters before it; folded characters [C]; which of them begin a word [W]; where words begin and end [W]."""


def _pieces(texts: Sequence[str]) -> Iterator[Piece]:
    """The texts, joined by line ends, in pieces that end between words."""
    before, first = 0, 0
    while first < len(texts):
        last, size = first, 0
        while last < len(texts) and (last == first or size + len(texts[last]) <= BLOCK):
            size += len(texts[last]) + 1
            last += 1
        codes = _codes("\n".join(texts[first:last]))
        while len(codes):
            end = _cut(codes)
            yield (before, *_split(codes[:end]))
            before, codes = before + end, codes[end:]
        before += 1
        first = last


def _codes(text: str) -> NDArray[np.uint32]:
    """What each character is folded to."""
    if text.isascii():
        return np.frombuffer(text.encode().translate(_ascii()), np.uint8).astype(np.uint32)
    return np.take(_table(), np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4"))


def _cut(codes: NDArray[np.uint32]) -> int:
    """Where a piece may end: after a character between words, `BLOCK` or, where none is near, twice that, ..."""
    limit = BLOCK
    while limit < len(codes):
        between = np.flatnonzero(codes[limit // 2 : limit] == BETWEEN)
        if len(between):
            return int(limit // 2 + between[-1] + 1)
        limit *= 2
    return len(codes)


def _split(codes: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], Places, Places, Places]:
    dropped = codes == DROPPED
    places = None
    if dropped.any():
        places = np.flatnonzero(~dropped)
        codes = codes.take(places)
    inside = np.empty(len(codes) + 2, np.bool_)
    inside[0] = inside[-1] = False
    inside[1:-1] = codes != BETWEEN
    begins = inside[1:-1] & ~inside[:-2]
    ends = inside[1:-1] & ~inside[2:]
    alone = codes >= ALONE
    if alone.any():
        begins |= alone
        begins[1:] |= alone[:-1] & inside[2:-1]
        ends |= alone
        ends[:-1] |= alone[1:] & inside[1:-2]
    digit = codes == ZERO
    kept = inside[1:-1].copy()
    kept[1:] &= ~(digit[1:] & digit[:-1])
    first, last, left = np.flatnonzero(begins), np.flatnonzero(ends), np.flatnonzero(kept)
    starts = np.flatnonzero(begins.take(left))
    if places is not None:
        first, last = places.take(first), places.take(last)
    return codes.take(left), starts, first, last + 1


def _hashed(
    before: int, codes: NDArray[np.uint32], first: Places, begins: Places, ends: Places
) -> tuple[Hashes, Places, Places]:
    """A word's hash is the sum of its characters times powers of a constant: a difference of sums over the piece."""
    power, inverse = _powers(max(BLOCK, 1 << len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * power[: len(codes)], out=sums[1:])
    borders = np.append(first, len(codes))
    hashes = np.diff(sums[borders]) * inverse[first]
    return mixed(hashes), begins + before, ends + before


@functools.lru_cache(maxsize=4)
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """Powers of the constant and of its inverse mod 2^64, from 0 up."""
    both = []
    for base in (_BASE, _INVERSE):
        steps = np.full(size, base, np.uint64)
        steps[0] = 1
        both.append(np.cumprod(steps))
    return both[0], both[1]


@functools.cache
def _table() -> NDArray[np.uint32]:
    """For each code point what it is folded to: `BETWEEN`, `DROPPED`, or a character, with `ALONE` where it is one."""
    table = np.zeros(0x110000, np.uint32)
    for begin, end in _LETTERS:
        table[begin:end] = np.arange(begin, end)
    known = np.zeros(0x110000, np.bool_)
    for begin, end in _LETTERS:
        known[begin:end] = True
    for code in np.flatnonzero(~known[:0x32000]).tolist():
        if not 0xD800 <= code < 0xF900:  # halves of characters, and private ones
            table[code] = _fold(chr(code))
    table[0xE0000:0xE0200] = [_fold(chr(code)) for code in range(0xE0000, 0xE0200)]
    for begin, end in _WITHOUT_BLANKS:
        part = table[begin:end]
        part[part > DROPPED] |= ALONE
    return table


@functools.cache
def _ascii() -> bytes:
    return bytes(_table()[:128].astype(np.uint8)) + bytes(128)


def _fold(character: str) -> int:
    kind = unicodedata.category(character)
    if kind in ("Mn", "Me", "Cf"):  # accents, soft hyphens
        return DROPPED
    if character.isdecimal():
        return ZERO
    if kind[0] not in "LNM":
        return BETWEEN
    plain = [one for one in unicodedata.normalize("NFD", character.lower()) if unicodedata.category(one) != "Mn"]
    return ord(plain[0]) if len(plain) == 1 else ord(character)

"""Words: runs of letters, digits and marks; in scripts without blanks each character; and marks of punctuation."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.text.classes import BLANK, DIGIT, JOINED, LETTER, MARK, UNSPACED, UPPER
from coretrain.corpus.text.spans import Ints, Mask, Spans

_INNER = (
    ("'", LETTER),
    ("’", LETTER),
    (",", DIGIT),
    (".", LETTER | DIGIT),
    ("@", LETTER | DIGIT),
)
"""Signs that join two words, and what must stand on both sides."""
_NOTHING, _JOINED, _SINGLE, _OTHER = range(4)


def split_words(points: NDArray[np.uint32], flags: NDArray[np.uint16], begins: Mask, bounds: Ints) -> Spans:
    """The words of texts.

    A word is a run of letters, digits, marks and underscores. Of what stands between two of them, these belong to it:
    an apostrophe between letters ("don't"), a comma between digits ("1,000"), a point or @ between letters or digits
    ("3.14", "example.com"), but for a point between a small letter and a capital ("end.Next"). A hyphen does not. Of
    Han, Kana, Thai, Lao, Khmer and Burmese each letter with the marks over it is a word: n of such characters are what
    repeats there. Any other character that is no blank is a word too, equal ones in a row are one ("...", "---").
    """
    kind = np.full(len(points), _OTHER, np.uint8)
    kind[(flags & JOINED) > 0] = _JOINED
    kind[(flags & UNSPACED) > 0] = _SINGLE
    kind[(flags & BLANK) > 0] = _NOTHING
    for sign, bits in _INNER:
        kind[_within(points, flags, kind, begins, ord(sign), bits)] = _JOINED
    joined = kind == _JOINED
    goes_on = np.zeros(len(points) + 1, np.bool_)
    same = (points[1:] == points[:-1]) & (kind[1:] == _OTHER)
    over = (flags[1:] & MARK) > 0
    goes_on[1:-1] = ((joined[1:] & joined[:-1]) | same | over) & (kind[:-1] != _NOTHING) & ~begins[1:]
    inked = kind != _NOTHING
    starts = np.flatnonzero(inked & ~goes_on[:-1])
    ends = np.flatnonzero(inked & ~goes_on[1:]) + 1
    return Spans(starts, ends, np.searchsorted(starts, bounds))


def _within(
    points: NDArray[np.uint32],
    flags: NDArray[np.uint16],
    kind: NDArray[np.uint8],
    begins: Mask,
    sign: int,
    bits: int,
) -> Ints:
    """Where the `sign` stands between two characters that have one of the `bits`, in one text."""
    at = np.flatnonzero(points == sign)
    at = at[(at > 0) & (at < len(points) - 1)]
    beside = ((flags[at - 1] & np.uint16(bits)) > 0) & ((flags[at + 1] & np.uint16(bits)) > 0)
    if sign == ord("."):
        beside &= ((flags[at - 1] & np.uint16(UPPER | DIGIT)) > 0) | ((flags[at + 1] & np.uint16(UPPER)) == 0)
    beside &= (kind[at - 1] == _JOINED) & (kind[at + 1] == _JOINED) & ~begins[at] & ~begins[at + 1]
    return at[beside]

"""What each Unicode character is, as bits of one number: a table over all code points, made once in a process.

The Unicode data are those of the interpreter (`VERSION`): another version of Python knows other new characters, so that
whoever compares results of two machines compares `VERSION` too.
"""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np
from numpy.typing import NDArray

VERSION = f"1, Unicode {unicodedata.unidata_version}"
"""Of the rules of this room: what counts as a word, a sentence, a letter."""

LETTER, DIGIT, BLANK, LINE_END, PUNCTUATION, SYMBOL, UPPER, MARK, UNSPACED, TERMINAL, PLAIN_PUNCTUATION, JOINED = (
    1 << bit for bit in range(12)
)
"""LETTER is `str.isalpha`, DIGIT `str.isdigit`, BLANK `str.isspace`, UPPER `str.isupper`; LINE_END is where
`str.splitlines` cuts; MARK are accents that stand over the letter before, and characters without width;
UNSPACED are letters of scripts that put no blanks between words; TERMINAL ends a sentence; PLAIN_PUNCTUATION is the
punctuation that datatrove leaves out of words; JOINED are letters, digits, marks and the underscore."""

POINTS = 0x110000
_ASSIGNED = (range(0x323B0), range(0xE0000, 0xE01F0))
"""What lies elsewhere is not assigned, or for private use."""

_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # marks of repetition among Han
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x323AF),
)
_TERMINALS = """
21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4 17D9-17DA 1803
1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E 2E3C 2E53-2E54 3002
A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52 FE56-FE57 FF01 FF0E FF1F FF61
10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239
1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C
11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F 1DA88
"""
"""Unicode 15's property Sentence_Terminal, and three signs of Khmer."""
_PLAIN = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" + "«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
"""datatrove 0.10's punctuation (the full-width one is among it), beside the control characters."""


@cache
def flags_of_points() -> NDArray[np.uint16]:
    """The bits of every code point [0x110000]."""
    flags = np.zeros(POINTS, np.uint16)
    for points in _ASSIGNED:
        flags[points.start : points.stop] = [_flags(chr(point)) for point in points]
    for first, last in _WITHOUT_BLANKS:
        part = flags[first : last + 1]
        part[(part & LETTER) > 0] |= UNSPACED
    for span in _TERMINALS.split():
        ends = [int(end, 16) for end in span.split("-")]
        flags[ends[0] : ends[-1] + 1] |= TERMINAL
    plain = [ord(one) for one in _PLAIN] + [*range(9), 11, 12, *range(13, 32), *range(127, 160)]
    flags[plain] |= PLAIN_PUNCTUATION
    flags.flags.writeable = False
    return flags


def _flags(one: str) -> int:
    category = unicodedata.category(one)
    bits = 0
    if one.isalpha():
        bits |= LETTER | JOINED
    if one.isdigit():
        bits |= DIGIT | JOINED
    if one.isspace():
        bits |= BLANK
        if one.splitlines() == [""]:
            bits |= LINE_END
    if one.isupper():
        bits |= UPPER
    if category[0] == "P":
        bits |= PUNCTUATION
    elif category[0] == "S":
        bits |= SYMBOL
    elif category[0] == "M" or category == "Cf":
        bits |= MARK | JOINED
    return bits | (JOINED if one == "_" else 0)

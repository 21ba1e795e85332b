"""JSON and TOML from outside, read within limits of size and depth; and values from there, fit for a sentence.

What is nested a thousand deep ends json and tomllib with a RecursionError, and whoever walks through it afterwards:
copying, comparing and printing recurse too. No file that we know of is nested deeper than 20.
"""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEEPEST = 100
LARGEST_JSON, LARGEST_TOML = 2**28, 2**20
"""Bytes. The largest tokenizer.json has some 30 MiB."""
LONGEST_SHOWN = 120
MOST_BITS = 1000
"""Of a whole number in TOML: larger ones are no floats, and Python doesn't print those of thousands of digits."""
_DOTTED = re.compile(r"""(?<![\w"'-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*)""" + f"{{{DEEPEST}}}")
"""A key of so many parts: tomllib takes a time that grows with their square."""


class TooDeepError(ValueError):
    """What is nested deeper than `DEEPEST`."""

    def __init__(self) -> None:
        super().__init__(f"it is nested more than {DEEPEST} deep")


def from_json(raw: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError with the reason where it is none, or nested too deep."""
    try:
        value = json.loads(raw)
    except RecursionError:
        raise TooDeepError from None
    if _brackets(raw) > DEEPEST:  # most texts have so few that there is no need to look
        _check_depth(value)
    return value


def from_toml(text: str) -> dict[str, Any]:
    """What a TOML text says. Raises ValueError with the reason where it is none, too long, or nested too deep."""
    if len(text) > LARGEST_TOML:
        raise ValueError(f"it is longer than {LARGEST_TOML:,} characters")
    if _DOTTED.search(text):
        raise TooDeepError
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise TooDeepError from None
    _check_depth(value)
    if any(isinstance(one, int) and one.bit_length() > MOST_BITS for one in _within(value)):
        raise ValueError("it has a whole number of more than 300 digits")
    return value


def read_bytes(path: Path, largest: int = LARGEST_JSON) -> bytes:
    """A small file whole. Raises ValueError where it is larger than `largest` bytes, and OSError."""
    with open(path, "rb") as file:
        raw = file.read(largest + 1)
    if len(raw) > largest:
        raise ValueError(f"it is larger than {largest // 2**20} MiB")
    return raw


def _brackets(raw: str | bytes) -> int:
    if isinstance(raw, str):
        return raw.count("[") + raw.count("{")
    return raw.count(b"[") + raw.count(b"{")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return
    raise TooDeepError


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _within(value: Any) -> Iterator[Any]:
    for one in _inside(value):
        yield one
        yield from _within(one)


def on_one_line(text: str) -> str:
    """A text with its line ends and control characters escaped; blanks of all scripts stay, as a path may have them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text)


def shown(value: object, quoted: bool = False) -> str:
    """A value as a sentence can hold it, cut short: what Python writes, of a text on one line without the quotes.

    With `quoted` they stay: of a value in a file, where 5 is something else than '5'.
    """
    try:
        text = value if isinstance(value, str) and value and on_one_line(value) == value and not quoted else repr(value)
    except (ValueError, RecursionError):  # of a number with thousands of digits; of what is nested
        text = f"a {type(value).__name__} too long to show"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"

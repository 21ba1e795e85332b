"""Lists of words and addresses in files of the user."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

LARGEST = 2**30
"""Bytes of a list, unpacked: a list of 4.6 million domains has 80 MiB."""


def read_list(path: Path, what: str) -> list[str]:
    """The entries of a file, one a line, without blanks at their ends; # begins a comment line.

    Raises `UserError` naming the file where it is missing, no text in UTF-8, larger than `LARGEST`, or has no entry.
    """
    name = shown(str(path))
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise UserError("corpus/list-unreadable", f"{what}, {name}, can't be read ({reason}): correct it") from None
    if len(raw) > LARGEST:
        raise UserError("corpus/list-too-large", f"{what}, {name}, is larger than {LARGEST // 2**20} MiB: cut it")
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError:
        raise UserError("corpus/list-not-text", f"{what}, {name}, is no text in UTF-8: convert it") from None
    entries = [line for one in lines if (line := one.strip()) and not line.startswith("#")]
    if not entries:
        raise UserError("corpus/list-empty", f"{what}, {name}, has no entry: write one a line, or leave it out")
    return entries

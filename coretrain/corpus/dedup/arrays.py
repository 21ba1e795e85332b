"""Files of named arrays: written whole, sealed with a checksum, read through memory maps.

Layout: 8 bytes of magic, 8 of the header's length (little-endian), a JSON header, the data: each array at a multiple of
64 bytes. The header has what the file is, its facts, each array's dtype, shape and place, and the SHA-256 of all that
and of the data.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.base.parse import from_json, shown

MAGIC = b"TWARRAY1"
DTYPES = ("<u8", "<i8", "<u4", "<i4", "<f8", "|u1", "|b1")
LARGEST_HEADER = 2**26
_ALIGNED = 64
_PIECE = 2**24


@dataclass(frozen=True)
class Arrays:
    """An open file: its facts, and its arrays as read-only memory maps."""

    path: Path
    facts: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]


def write_arrays(path: Path, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write `arrays` to `path`, whole or not at all; the same bytes for the same arrays and facts (JSON values)."""
    table: dict[str, Any] = {}
    chunks: list[bytes | memoryview] = []
    place = 0
    for name, value in arrays.items():
        held = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        if held.dtype.str not in DTYPES:
            raise TypeError(f"{name} is of {held.dtype.str}")
        padding = bytes(-place % _ALIGNED)
        raw = held.reshape(-1).view(np.uint8).data
        chunks += [padding, raw]
        table[name] = [held.dtype.str, list(held.shape), place + len(padding)]
        place += len(padding) + held.nbytes
    header = {"kind": kind, "facts": dict(facts), "arrays": table, "bytes": place}
    digest = hashlib.sha256(_as_bytes(header))
    for chunk in chunks:
        digest.update(chunk)
    text = _as_bytes(header | {"sha256": digest.hexdigest()})
    text = text.ljust(len(text) + -(len(text) + 16) % _ALIGNED)
    write_atomically(path, MAGIC, len(text).to_bytes(8, "little"), text, *chunks)


def read_arrays(path: Path, kind: str, sealed: bool = False) -> Arrays:
    """Open a file of this kind; with `sealed` all its bytes are checked.

    Raises `UserError` naming it where it is missing, of another kind, or damaged.
    """
    try:
        with open(path, "rb") as file:
            magic, length = file.read(8), int.from_bytes(file.read(8), "little")
            raw = file.read(length) if magic == MAGIC and length <= LARGEST_HEADER else b""
        size = path.stat().st_size
    except OSError as error:
        raise UserError("corpus/arrays-unreadable", f"can't read {path} ({error.strerror}): make it again") from None
    try:
        header = from_json(raw)
        found = header["kind"]
        places = {name: _checked(entry, header["bytes"]) for name, entry in header["arrays"].items()}
        facts, seal = dict(header["facts"]), header.pop("sha256")
        whole = 16 + length + header["bytes"] == size
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(
            "corpus/arrays-header-damaged", f"{path} is damaged, or isn't made by twintrain corpus: make it again"
        ) from None
    if found != kind:
        raise UserError(
            "corpus/arrays-other-kind", f"{path} holds {shown(found)}, where {kind} is needed: give another file"
        )
    if not whole:
        raise UserError("corpus/arrays-length-wrong", f"{path} is damaged: it has been cut off: make it again")
    if sealed and _seal(path, header, 16 + length) != seal:
        raise UserError(
            "corpus/arrays-checksum-wrong", f"{path} is damaged: it isn't what its checksum says: make it again"
        )
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape, place) in places.items():
        empty = math.prod(shape) == 0  # which can't be mapped
        arrays[name] = np.zeros(shape, dtype) if empty else np.memmap(path, dtype, "r", 16 + length + place, shape)
    return Arrays(path, facts, arrays)


def _checked(entry: Any, size: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """An entry of the header. Raises ValueError, TypeError where it isn't one."""
    dtype, shape, place = entry
    if dtype not in DTYPES or any(type(one) is not int or one < 0 for one in (*shape, place)):
        raise ValueError
    kind = np.dtype(dtype)
    if place + math.prod(shape) * kind.itemsize > size:
        raise ValueError
    return kind, tuple(shape), place


def _as_bytes(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True).encode()


def _seal(path: Path, header: Mapping[str, Any], start: int) -> str:
    digest = hashlib.sha256(_as_bytes(header))
    with open(path, "rb") as file:
        file.seek(start)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()

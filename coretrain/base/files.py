"""Files that are either whole or absent: atomic writes, checked reads, and a lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json, read_bytes, shown

TEMPORARY = ".tmp-"
PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")
"""Kinds of pictures that are drawn here, by the ending of their names."""


def write_atomically(path: Path, *chunks: bytes | memoryview | str) -> str:
    """Write `chunks`, text in UTF-8, to `path` through a temporary file, fsync and rename; returns their SHA-256."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    digest = hashlib.sha256()
    try:
        with open(temporary, "wb") as file:
            for chunk in chunks:
                raw = chunk.encode() if isinstance(chunk, str) else chunk
                file.write(raw)
                digest.update(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, what: str, way_out: str = "restore it, or download it again") -> dict[str, Any]:
    """The object in a JSON file. Raises `UserError` naming it, and the `way_out`, when it is missing or damaged."""
    try:
        value = from_json(read_bytes(path).decode())
    except FileNotFoundError:
        raise UserError("base/json-file-missing", f"{path} is missing, {what}: {way_out}") from None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError("base/json-not-an-object", f"{path} is damaged ({what} should be a JSON object): {way_out}")
    return value


def check_picture(path: Path, asked: str) -> None:
    """Raise `UserError` naming what `asked` for it where `path` can't become a picture, before anything is computed."""
    if path.suffix.lower() not in PICTURES:
        raise UserError(
            "base/picture-kind-unknown",
            f"{asked} {shown(str(path))} is no name of a picture: let it end in {', '.join(PICTURES)}",
        )
    if not path.parent.is_dir():
        raise UserError(
            "base/picture-folder-missing",
            f"{asked} {shown(str(path))}: there is no folder {path.parent}: make it first",
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(*parts: object) -> str:
    """32 hex digits of the JSON of `parts`: a key for a cache entry."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def remove(paths: Iterable[Path]) -> None:
    """Delete files, those already gone included."""
    for path in paths:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; others wait. The kernel frees it when the process dies, however it dies."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

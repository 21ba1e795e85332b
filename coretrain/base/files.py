"""Files and folders that are either whole or absent: atomic writes, checked reads; and paths as people type them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.interrupts import tidied_at_sigterm
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


def typed_path(text: str) -> Path:
    """A path as it was typed, `~` being the home folder. Raises `UserError` where there is none, or it is no path."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(
            "base/path-not-utf-8",
            f"{text!r} can't be a path here: its name isn't UTF-8, or has a zero byte; rename that file or folder",
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            "base/home-folder-unknown",
            f"{text} can't be found, since ~ stands for no folder here (HOME is not set, or there is no such user): "
            "give the path without ~",
        ) from None


def quoted(path: Path) -> str:
    """A path as Python's own text, in double quotes."""
    return json.dumps(str(path), ensure_ascii=False)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target` to write it in; what isn't moved out of it by the end of the block is removed.

    What a killed process left there goes first. Raises `UserError` where another process is writing `target`.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tidied_at_sigterm():
        handle = _hold(temporary, target)
        try:
            for left in temporary.iterdir():
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            yield temporary
        finally:
            if _is_still(temporary, handle):  # and not renamed, and begun anew by another
                shutil.rmtree(temporary, ignore_errors=True)
            os.close(handle)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name, where nothing is or an empty folder, also one that a link leads to."""
    target = folder.resolve() if folder.is_symlink() else folder
    for path in temporary.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    sync_folder(temporary)
    os.replace(temporary, target)
    sync_folder(target.parent)


def _hold(temporary: Path, target: Path) -> int:
    """Make a folder, or take over one that nobody holds; the open handle that holds it."""
    while True:
        if temporary.is_file():
            temporary.unlink()
        temporary.mkdir(exist_ok=True)
        handle = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UserError(
                "base/target-being-written",
                f"{target} is being written by another process: wait for its end, or choose another name",
            ) from None
        except OSError:
            pass  # a file system without locks
        if _is_still(temporary, handle):
            return handle
        os.close(handle)  # its owner has finished, and renamed it, just now


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False

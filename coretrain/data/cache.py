"""The folder of prepared shards and trained tokenizers, and one process at a time in what it prepares there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.locks import locked
from coretrain.config.data import DataConfig


def cache_folder(data: DataConfig) -> Path:
    """The folder of the cache, made if it isn't there. Raises `UserError` that names data.cache."""
    try:
        folder = typed_path(data.cache)
    except UserError as error:
        raise UserError("data/cache-nowhere", f"data.cache: {error}, as in --data.cache /tmp/twintrain") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            "data/cache-not-a-folder", f"data.cache = {data.cache} is no folder: give one that can be written"
        ) from None
    except OSError as error:
        raise _unwritable(data, error) from None
    return folder


def _unwritable(data: DataConfig, error: OSError) -> UserError:
    return UserError(
        "data/cache-unwritable",
        f"data.cache = {data.cache} can't be written ({error.strerror}): give another folder, as --data.cache "
        "/tmp/twintrain",
    )


@contextlib.contextmanager
def alone(folder: Path, data: DataConfig, say: Callable[[str], None]) -> Iterator[None]:
    """Prepare `folder` while no other process does. Raises `UserError` where the cache can't be written."""
    lock = folder.with_suffix(".lock")
    try:
        lock.touch()
    except OSError as error:
        raise _unwritable(data, error) from None
    with locked(lock, lambda: say(f"another process prepares {folder}: waiting until it has ended")):
        yield

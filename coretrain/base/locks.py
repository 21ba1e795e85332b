"""Locks on files. The kernel frees them when their process dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from coretrain.base.errors import UserError

LOCK = ".lock"
"""The file in a folder that who works in it holds. It stays when the folder is free again."""
HELD = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def locked(path: Path, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock on `path`; others wait, and call `wait` before. Where there are no locks, go on."""
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def held(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold `folder` in the block: another process that wants to work in it is refused, one that reads it is not.

    `warn` is told where the file system has no locks. Raises `UserError` naming the process that holds it.
    """
    # Not flock's kind: workers that are forked would hold it on after their parent was killed.
    with open(folder / LOCK, "a+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                file.seek(0)
                holder = file.read(300).decode(errors="replace").strip() or "another process"
                raise UserError(
                    "base/folder-in-use",
                    f"{folder} is in use by {holder}: wait for its end, or end it, then run the same again",
                ) from None
            warn(f"{folder} can't be locked ({error.strerror}): start nothing else that writes into it")
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield

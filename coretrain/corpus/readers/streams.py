"""Files as bytes from a place on, unpacked where they are packed as one; what breaks them is one kind of error."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import zstandard

from coretrain.base.errors import UserError
from coretrain.corpus.readers.window import DamagedError, TruncatedError

STEP = 2**14
"""Packed bytes that are unpacked at a time."""


@contextlib.contextmanager
def opened(path: str, packing: str = "", start: int = 0) -> Iterator[Callable[[int], bytes]]:
    """`read(n)` of a file from byte `start` on: at most n bytes, none at the end.

    Of a file that is packed as one (`gzip-stream`, `zstd-stream`) what it unpacks to. `read` raises `DamagedError`
    where that breaks. Raises `UserError` where the file can't be opened.
    """
    with plain(path) as file:
        file.seek(start)
        if packing == "gzip-stream":
            yield _reads(gzip.GzipFile(fileobj=file).read1)
        elif packing == "zstd-stream":
            yield _reads(Frames(file).read)
        else:
            yield file.read


@contextlib.contextmanager
def plain(path: str) -> Iterator[BinaryIO]:
    """A file's own bytes. Raises `UserError` where it isn't there, or can't be read."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(
            "corpus/file-unreadable", f"{error.filename or path} can't be read ({error.strerror or error}): look at it"
        ) from None


class Frames:
    """Frames of zstd, one after the other; unlike the package's own reader it knows an end that comes too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rest = b""
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._within = False

    def read(self, _: int = -1) -> bytes:
        """Some bytes, none at the end. Raises EOFError where it comes too early."""
        while packed := self._rest or self._file.read(STEP):
            part = self._frame.decompress(packed)
            self._rest, self._within = b"", True
            if self._frame.eof:
                self._rest, self._within = self._frame.unused_data, False
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            if part:
                return part
        if self._within:
            raise EOFError
        return b""


def _reads(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    def checked(count: int) -> bytes:
        try:
            return read(count)
        except EOFError:
            raise TruncatedError("the file ends too early") from None
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise DamagedError(str(error)) from None

    return checked

"""Records that are packed one by one (gzip members, zstd frames): each can be found and unpacked by itself."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import zstandard

from coretrain.corpus.readers.window import DamagedError, TruncatedError, Window

SIGN = b"WARC/"
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
SKIPPED, DICTIONARY = b"\x2a\x4d\x18", b"\x5d\x2a\x4d\x18"
"""How frames of zstd begin that hold no data (after a byte of 0x50 to 0x5f); one of them may hold a dictionary."""
STEP, SMALL_STEP = 2**14, 2**11
"""Packed bytes that are unpacked at a time: of gzip, which gives at most 1,032 bytes for one, and of zstd."""
LARGEST = 2**28
"""Bytes of a record. Crawlers cut pages at a few MiB."""
PROBED = 2**18
"""Packed bytes that must give the first few bytes of a record."""


class TooLargeError(DamagedError):
    """A record of more than `LARGEST` bytes."""


class Packing:
    """How records are packed: the sign that a packed one begins with, and what unpacks it."""

    def __init__(
        self, word: str, sign: bytes, step: int, opened: Callable[[], Any], quick: Callable[[], Any] | None = None
    ) -> None:
        """`opened()` gives an object that unpacks one member: `decompress`, `eof`, `unused_data`. So does `quick()`,
        which is tried first: what it doesn't get through is judged by the other alone.
        """
        self.word, self.sign, self._step, self._opened, self._quick = word, sign, step, opened, quick

    def unpack(self, window: Window, most: int = LARGEST) -> tuple[bytes, int]:
        """The member that begins at the window's place, and how many packed bytes it has. The window stays.

        Raises `TooLargeError` where it has more than `most` bytes, `TruncatedError` where the file ends within it,
        `DamagedError` where it is no member, or a damaged one.
        """
        if self._quick is not None:
            try:
                return self._unpacked(window, most, self._quick())
            except Exception:  # of a library for whatever the bytes are
                pass
        return self._unpacked(window, most, self._opened())

    def _unpacked(self, window: Window, most: int, unpacker: Any) -> tuple[bytes, int]:
        parts, size, taken = list[bytes](), 0, 0
        while not unpacker.eof:
            chunk = window.held(self._step, taken)
            if not chunk:
                if not window.more():
                    raise TruncatedError("the file ends within it")
                continue
            try:
                part = unpacker.decompress(chunk)
            except (zlib.error, zstandard.ZstdError) as error:
                raise DamagedError(str(error)) from None
            taken += len(chunk)
            size += len(part)
            if size > most:
                raise TooLargeError(f"it has more than {most} bytes")
            parts.append(part)
        return b"".join(parts), taken - len(unpacker.unused_data)

    def head(self, window: Window, count: int) -> bytes:
        """The first `count` bytes of the member that begins here; fewer where it has fewer, or can't be unpacked."""
        if window.look(len(self.sign)) != self.sign:
            return b""
        unpacker, taken, head = self._opened(), 0, b""
        while len(head) < count and not unpacker.eof and taken < PROBED:
            chunk = window.look(self._step, taken)
            if not chunk:
                break
            taken += len(chunk)
            try:
                head += unpacker.decompress(chunk)
            except (zlib.error, zstandard.ZstdError):
                break  # what came before it in this step is lost
        return head[:count]

    def begins(self, window: Window) -> bool:
        """Whether a packed record begins here."""
        return self.head(window, len(SIGN)) == SIGN

    def seek(self, window: Window) -> bool:
        """Go forward to the next place where a record begins, this one too; whether there is one."""
        while window.find(self.sign):
            if self.begins(window):
                return True
            window.skip(1)
        return False


def gzip_members() -> Packing:
    """Of `.warc.gz`, as ISO 28500 recommends."""
    return Packing("gzip", GZIP, STEP, lambda: zlib.decompressobj(31), _by_isal())


def _by_isal() -> Callable[[], Any] | None:
    """Twice as fast as zlib; None where there is no wheel of it for this machine."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return lambda: isal_zlib.decompressobj(31)


def zstd_frames(dictionary: bytes | None = None) -> Packing:
    """Of `.warc.zst`; `dictionary` as `dictionary_of` finds it."""
    told = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    return Packing("zstd", ZSTD, SMALL_STEP, lambda: zstandard.ZstdDecompressor(dict_data=told).decompressobj())


def skip_frames(window: Window) -> None:
    """Go over frames of zstd that hold no data."""
    while window.look(4)[1:] == SKIPPED and 0x50 <= window.look(1)[0] <= 0x5F:
        window.skip(8 + int.from_bytes(window.look(4, 4), "little"))


def dictionary_of(window: Window) -> bytes | None:
    """The dictionary that a `.warc.zst` may begin with, unpacked; the window is behind it then.

    Raises `DamagedError` where it can't be unpacked. Source: the IIPC's draft of Zstandard for WARC files.
    """
    if window.look(4) != DICTIONARY:
        return None
    size = int.from_bytes(window.look(4, 4), "little")
    if size > LARGEST:
        raise TooLargeError(f"it has more than {LARGEST} bytes")
    raw = window.look(size, 8)
    window.skip(8 + size)
    if not raw.startswith(ZSTD):
        return raw
    try:
        return zstandard.ZstdDecompressor().decompress(raw, max_output_size=2**26)
    except zstandard.ZstdError as error:
        raise DamagedError(str(error)) from None

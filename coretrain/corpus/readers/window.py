"""A window that moves forward over bytes: records are looked at before they are taken."""

from __future__ import annotations

from collections.abc import Callable


class DamagedError(Exception):
    """A record, or a file that is packed as one, that can't be unpacked."""


class TruncatedError(DamagedError):
    """One that the file ends within."""


BLOCK = 2**20
"""Bytes that are read at a time."""


class Window:
    """The bytes of a stream from a place on. Holds what was looked at and not yet skipped, and a block more."""

    def __init__(self, read: Callable[[int], bytes], at: int = 0) -> None:
        """`read(n)` gives at most n bytes, none at the end; `at` is the place of its first byte."""
        self.at = at
        """The place of the first byte that isn't skipped."""
        self.ended = False
        """Whether all there is has been read."""
        self.broken: DamagedError | None = None
        """Why `ended`, where it isn't the end of the file."""
        self._read = read
        self._buffer = b""
        self._begin = 0

    def __len__(self) -> int:
        """How many bytes are held."""
        return len(self._buffer) - self._begin

    def more(self) -> bool:
        """Read another block; whether there was one."""
        if self.ended:
            return False
        block = self._block(BLOCK)
        self._buffer = self._buffer[self._begin :] + block if len(self) else block
        self._begin = 0
        return not self.ended

    def has(self, count: int) -> bool:
        """Whether there are `count` bytes from here on; reads them."""
        if len(self) >= count:
            return True
        blocks, held = [self._buffer[self._begin :]], len(self)
        while held < count and not self.ended:
            block = self._block(max(BLOCK, min(count - held, 2**26)))
            blocks.append(block)
            held += len(block)
        self._buffer, self._begin = b"".join(blocks), 0
        return held >= count

    def _block(self, count: int) -> bytes:
        try:
            block = self._read(count)
        except DamagedError as error:
            self.broken, block = error, b""
        self.ended = not block
        return block

    def look(self, count: int, after: int = 0) -> bytes:
        """`count` bytes from `after` bytes on, fewer at the end."""
        self.has(after + count)
        return self._buffer[self._begin + after : self._begin + after + count]

    def held(self, count: int, after: int) -> memoryview:
        """At most `count` bytes from `after` bytes on, of those that are held already, not copied."""
        return memoryview(self._buffer)[self._begin + after : self._begin + after + count]

    def line(self, most: int) -> int:
        """Bytes of the line that begins here, its end included; more than `most` where it is longer than that."""
        looked = 0
        while True:
            place = self._buffer.find(b"\n", self._begin + looked)
            if place >= 0:
                return place + 1 - self._begin
            looked = len(self)
            if looked > most or (not self.has(2 * looked + 1) and len(self) == looked):
                return looked

    def skip(self, count: int) -> None:
        """Go forward, over bytes that are held or not."""
        while count > len(self):
            count -= len(self)
            self.at += len(self)
            self._begin = len(self._buffer)
            if not self.more():
                return
        self._begin += count
        self.at += count

    def find(self, token: bytes) -> bool:
        """Go forward to where `token` stands, or to the end; whether it was found."""
        while True:
            place = self._buffer.find(token, self._begin)
            if place >= 0:
                self.skip(place - self._begin)
                return True
            self.skip(max(0, len(self) - len(token) + 1))
            if not self.more():
                self.skip(len(self))
                return False

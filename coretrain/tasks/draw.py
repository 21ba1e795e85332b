"""Random numbers that are a pure function of what names them: of a task, its seed, a row and a purpose."""

from __future__ import annotations

import hashlib
import json

WORDS = 8


class Draw:
    """A stream of numbers. Two with one name give the same numbers, on any machine and in any version of Python."""

    def __init__(self, *name: str | int) -> None:
        self._name = json.dumps(name).encode()
        self._block = 0
        self._words: list[int] = []

    def _word(self) -> int:
        """64 random bits."""
        if not self._words:
            raw = hashlib.blake2b(self._name + b"/%d" % self._block, digest_size=8 * WORDS).digest()
            self._words = [int.from_bytes(raw[start : start + 8], "little") for start in range(0, 8 * WORDS, 8)]
            self._block += 1
        return self._words.pop()

    def below(self, count: int) -> int:
        """A whole number in [0, count), each as likely to within count / 2^64."""
        return self._word() * count >> 64

    def fraction(self) -> float:
        """A float64 in [0, 1), a multiple of 2^-53."""
        return (self._word() >> 11) * 2.0**-53

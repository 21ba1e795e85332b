"""GPT-2's printable characters for the 256 bytes."""

from __future__ import annotations


def byte_characters() -> list[str]:
    """The printable character by which GPT-2's byte-level alphabet stands for each byte 0..255."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)]

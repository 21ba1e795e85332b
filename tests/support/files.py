"""Damage to files."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path, where: int, mask: int = 1) -> None:
    """Damage one bit of the byte at `where`."""
    raw = bytearray(path.read_bytes())
    raw[where] ^= mask
    path.write_bytes(raw)

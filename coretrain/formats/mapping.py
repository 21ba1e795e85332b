"""How a file of somebody else's names and lays out the contract's tensors: one row for each of its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorMap:
    """One tensor of another format, made of one or more canonical tensors."""

    name: str
    """Its name there."""
    parts: tuple[str, ...]
    """The canonical tensors in it, side by side along the output axis."""
    transposed: bool = False
    """Held as [in, out]; several parts lie along the last axis."""
    heads: int = 0
    """Heads whose rows are interleaved for rotary positions (GGUF); 0 where rows stay."""

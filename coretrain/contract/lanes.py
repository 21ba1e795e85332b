"""Rows of a key/value cache that come and go one by one: what a stack offers, and what of it needs no framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coretrain.base.arrays import Array
from coretrain.config.run import RunConfig


class Lanes(Protocol):
    """A model with so many `rows` of a key/value cache, each of a length of its own, up to `slots` tokens.

    Token n of a row lies in slot n, at position n. A row holds what was put into it until other tokens are put into the
    same slots; what lies behind the last of them is never read, so that a row needs no clearing.
    """

    rows: int
    slots: int

    def piece(self, left: int, most: int) -> int:
        """How many of `left` tokens of a prompt to put in next, at most `most`: what the stack has a program for."""

    def prefill(self, row: int, ids: Sequence[int], at: int, every: bool = False) -> NDArray[Any]:
        """Put `ids`, as many as a `piece`, into slots `at` and on of a row: logits [V] after the last of them.

        With `every`, [T, V] after each.
        """

    def step(self, tokens: NDArray[np.int32], at: NDArray[np.int32]) -> NDArray[Any]:
        """Put token b into slot at[b] of row b, for the first B rows: logits [B, V] after them.

        A row with at[b] = `slots` takes no part: it stays as it is, and its logits mean nothing.
        """

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` slots of one row to another. Row `rows` is there too, for an exchange."""

    def keep(self, row: int, length: int) -> Any:
        """A copy of the first `length` slots of a row, for `restore`."""

    def restore(self, row: int, kept: Any, length: int) -> None:
        """Put the first `length` slots of what `keep` gave into a row."""

    def add(self, config: RunConfig, tensors: Mapping[str, Array]) -> None:
        """Keep an adapter by its `config.adapter.name`, as `AdapterBank.add` does. Raises `UserError` as that does."""

    def use(self, name: str | None) -> None:
        """Compute with that adapter from here on, or with none."""

    def close(self) -> None:
        """Leave the model as it was found."""


def furthest(at: NDArray[np.int32], slots: int) -> int:
    """Slots that a step reads: up to the furthest of the rows that take part, at least one."""
    return int(at[at < slots].max(initial=0)) + 1

"""Keys and values that earlier requests left, found again by their ids: a conversation's next turn begins there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 16
"""Tokens from which it is worth copying them."""


@dataclass
class Kept:
    """What one request left."""

    ids: NDArray[np.int64]
    adapter: str | None
    held: Any
    """As the stack's lanes gave it."""


class Prefixes:
    """The newest of them, together at most so many tokens; what wasn't used for longest goes first."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.kept = tokens, list[Kept]()

    def find(self, ids: Sequence[int], adapter: str | None) -> tuple[Kept | None, int]:
        """The one that has most of the beginning of `ids`, and how many tokens, fewer than all."""
        best, most, wanted = None, LEAST - 1, np.array(ids[:-1], np.int64)
        for one in self.kept:
            if one.adapter == adapter and (same := shared(one.ids, wanted)) > most:
                best, most = one, same
        if best is None:
            return None, 0
        self.kept.append(self.kept.pop(self._place(best)))
        return best, most

    def wants(self, ids: Sequence[int], adapter: str | None) -> bool:
        """Whether these ids are worth keeping: not few, not too many, and not the beginning of what is kept."""
        given = np.array(ids, np.int64)
        held = (one for one in self.kept if one.adapter == adapter)
        return LEAST <= len(ids) <= self.tokens and not any(shared(one.ids, given) == len(given) for one in held)

    def add(self, ids: Sequence[int], adapter: str | None, held: Any) -> None:
        """Keep these, in place of what is their beginning."""
        given = np.array(ids, np.int64)
        self.kept = [one for one in self.kept if one.adapter != adapter or shared(one.ids, given) < len(one.ids)]
        self.kept.append(Kept(given, adapter, held))
        while sum(len(one.ids) for one in self.kept) > self.tokens:
            self.kept.pop(0)

    def clear(self) -> None:
        """Keep nothing."""
        self.kept.clear()

    def _place(self, wanted: Kept) -> int:
        return next(place for place, one in enumerate(self.kept) if one is wanted)


def shared(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> int:
    """How many ids two rows have in common from their beginning on."""
    both = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:both] != theirs[:both])
    return int(differ[0]) if len(differ) else both

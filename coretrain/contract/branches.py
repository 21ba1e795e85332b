"""Rows whose beginning is computed once for several endings: what a stack is given, and which tokens see which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARED, PADDING = 0, -1
"""What `Branches.branch` says of a token that belongs to no one ending."""


@dataclass(frozen=True)
class Branches:
    """Rows [B, T]: a beginning, then several endings one behind the other, each of which follows the beginning alone.

    Arrays of the host; the log-probabilities that are wanted of them are P.
    """

    tokens: NDArray[np.int32]
    """Token ids [B, T]."""
    positions: NDArray[np.int32]
    """[B, T]: a token's place in the text that it belongs to, the beginning and its own ending."""
    branch: NDArray[np.int32]
    """[B, T]: `SHARED` in the beginning, 1, 2, ... in the endings, `PADDING` behind them."""
    places: NDArray[np.int32]
    """[P]: where in the B x T tokens a label is predicted; several endings may begin at one place."""
    labels: NDArray[np.int32]
    """[P]: ids, or `coretrain.data.batch.IGNORED` where P was filled up."""

    @property
    def seen(self) -> NDArray[np.bool_]:
        """[B, T, T]: which tokens (last) a token sees: the beginning and its own ending, up to itself."""
        one, other = self.branch[:, :, None], self.branch[:, None, :]
        T = self.tokens.shape[1]
        seen: NDArray[np.bool_] = ((other == SHARED) | (other == one)) & np.tri(T, dtype=bool)
        return seen

    def arrays(self) -> tuple[Any, ...]:
        """tokens, positions, seen, places and labels, as a stack's `branch_scores` takes them."""
        return self.tokens, self.positions, self.seen, self.places, self.labels

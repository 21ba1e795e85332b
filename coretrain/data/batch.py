"""One batch: input ids, labels and positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]
IGNORED = -100
"""Label of a position that is no target, as the stacks' losses have it."""


def planes(batch: Any) -> tuple[Any, ...]:
    """Inputs [B, T] and labels [B, T] of a batch of either kind, and of packed rows positions [B, T] after them.

    Takes numpy's arrays and any framework's that are cut in the same way.
    """
    return (batch[:, :-1], batch[:, 1:]) if batch.ndim == 2 else (batch[:, 0], batch[:, 1], batch[:, 2])

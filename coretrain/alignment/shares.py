"""What each token of an answer counts in the loss of one update, so that the loss is a plain sum of products.

The shares are made once for the whole update: however it is cut into micro-batches and processes, their sums add up.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coretrain.alignment.sums import Floats, Mask


def shares(aggregate: str, mask: Mask, tokens: int, counted: Mask | None = None) -> Floats:
    """What each masked token [B, T] of an update counts; 0 elsewhere.

    - `token`: 1 / all tokens of the update (Yu 2025, DAPO): long answers weigh more
    - `sequence`: 1 / (answers x tokens of the answer) (Shao 2024, GRPO): all answers weigh the same
    - `constant`: 1 / (answers x `tokens`), the most tokens that an answer may have (Liu 2025, Dr. GRPO)

    The first two sum to 1. Rows that aren't `counted` [B], and rows without a token, weigh nothing and are in no
    divisor. Where nothing is left, all shares are 0.
    """
    part = mask if counted is None else mask & counted[:, None]
    lengths = part.sum(1)
    answers = int((lengths > 0).sum())
    divisors: Any
    if aggregate == "token":
        divisors = lengths.sum()
    elif aggregate == "sequence":
        divisors = (answers * lengths)[:, None]
    elif aggregate == "constant":
        divisors = answers * tokens
    else:
        raise ValueError(f"{aggregate} is no aggregation")
    return np.where(part, 1.0 / np.maximum(divisors, 1), 0.0)

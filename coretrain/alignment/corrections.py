"""Weights for tokens that another program, or another precision, sampled than the one that is trained.

With p the sampler's log-probability of a token and o the trainer's, of the same weights, exp(o - p) is what importance
sampling asks for. A token's own ratio is biased but of small variance; the whole answer's is unbiased.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coretrain.alignment.sums import Floats, Mask, kept, row_totals


def log_ratios(old: Any, sampled: Any, mask: Mask) -> Floats:
    """o - p of each masked token [B, T], in nats; 0 elsewhere."""
    return kept(old, mask) - kept(sampled, mask)


def corrections(kind: str, level: str, old: Any, sampled: Any, mask: Mask, cap: float, low: float = 0.0) -> Floats:
    """The weight of each masked token [B, T]; 1 elsewhere, and everywhere where `kind` is `none`.

    - `truncate`: min(ratio, cap) (Yao 2025, TIS)
    - `mask`: the ratio where it is in [low, cap], else 0 (IcePop)

    The ratio is the token's own (`level` = `token`) or, for all tokens of an answer, the product of theirs
    (`sequence`). Tokens of weight 0 stay in the divisors of the loss: these are weights, not tokens left out.
    """
    if kind == "none":
        return np.ones(mask.shape)
    logs = log_ratios(old, sampled, mask)
    if level == "sequence":
        logs = np.broadcast_to(row_totals(logs, mask)[:, None], mask.shape)
    elif level != "token":
        raise ValueError(f"{level} is no level of a correction")
    with np.errstate(over="ignore"):  # infinite: beyond any cap
        ratios = np.exp(logs)
    if kind == "truncate":
        weights = np.minimum(ratios, cap)
    elif kind == "mask":
        weights = np.where((ratios >= low) & (ratios <= cap), ratios, 0.0)
    else:
        raise ValueError(f"{kind} is no correction")
    return np.where(mask, weights, 1.0)

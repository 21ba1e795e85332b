"""How far a sampler's log-probabilities are from the trainer's: what rounding, or another program, makes of one policy.

In float64 they are equal to 1e-13 a token. Below that, and with another program as the sampler, what is told here is
what the trainer's ratios start from: `corrections.py` has what can be done about it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from coretrain.alignment.kl import ESTIMATORS
from coretrain.alignment.sums import Mask, kept, mean

LEAST, MOST = 0.5, 2.0
"""Ratios of a token beyond these are far: of a policy's own samples there should be none."""


def gap_figures(old: Any, sampled: Any, mask: Mask) -> dict[str, float]:
    """Of the distances o - p between the trainer's log-probabilities and the sampler's, both [B, T], at masked tokens:

    - gap_mean, gap_max: of their absolute values, in nats;
    - gap_k3: the estimate of KL(sampler, trainer) a token, the mean of exp(o - p) - 1 - (o - p) (Schulman 2020);
    - gap_outside: the share of tokens whose ratio exp(o - p) is outside [LEAST, MOST].

    All are 0 where there is no token. A NaN shows in the first three, and is far.
    """
    distances = (kept(old, mask) - kept(sampled, mask))[mask]
    sizes = np.abs(distances)
    near = (distances >= math.log(LEAST)) & (distances <= math.log(MOST))
    return {
        "gap_mean": mean(sizes),
        "gap_max": float(sizes.max(initial=0.0)),
        "gap_k3": mean(ESTIMATORS["k3"](-distances)),
        "gap_outside": float(np.count_nonzero(~near)) / max(1, len(near)),
    }

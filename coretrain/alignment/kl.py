"""How far the policy is from its reference: estimators of one token's KL divergence, and what steers its coefficient.

The estimators are values here, as they stand in a reward and in the journal. What is differentiated is in the stacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coretrain.alignment.sums import Floats, Mask, kept, mean, row_totals
from coretrain.base.errors import UserError
from coretrain.base.parse import shown

STEP = 0.2
"""The largest share of its target by which the KL divergence is said to be off, in one update of the coefficient."""


def _k1(distance: Floats) -> Floats:
    return distance


def _k2(distance: Floats) -> Floats:
    return distance**2 / 2


def _k3(distance: Floats) -> Floats:
    with np.errstate(over="ignore"):  # a token that the reference takes for e^709 times as likely: infinite
        return np.expm1(-distance) + distance


ESTIMATORS: Mapping[str, Callable[[Floats], Floats]] = {"k1": _k1, "k2": _k2, "k3": _k3}
"""Of d = log pi - log reference of a token that pi sampled (Schulman 2020, "Approximating KL divergence"): k1 = d,
k2 = d^2 / 2, k3 = exp(-d) - 1 + d. The means of k1 and k3 are the KL divergence; k2 and k3 are never below 0."""


def kl_values(estimator: str, logprobs: Any, reference: Any, mask: Mask) -> Floats:
    """The estimate at each masked token [B, T], in nats; 0 elsewhere, whatever stands there."""
    return ESTIMATORS[estimator](kept(logprobs, mask) - kept(reference, mask))


def sequence_kl(estimator: str, logprobs: Any, reference: Any, mask: Mask) -> float:
    """Nats of a whole answer: the sum over its tokens, the mean over rows that have any; what a controller steers."""
    rows = mask.any(1)
    return mean(row_totals(kl_values(estimator, logprobs, reference, mask), mask)[rows])


@dataclass(frozen=True)
class Controller:
    """Where the coefficient of the KL divergence goes after a rollout.

    `adaptive` (Ziegler 2019, "Fine-Tuning Language Models from Human Preferences"): it grows while the divergence is
    above the target and shrinks while it is below, by at most `STEP` x (answers in the rollout / horizon).
    """

    adaptive: bool
    target: float
    """Nats of a whole answer."""
    horizon: float
    """Answers."""

    def after(self, coefficient: float, kl: float, answers: int) -> float:
        """The next coefficient. A divergence that is no number changes nothing: the update's loss tells of it."""
        if not self.adaptive or math.isnan(kl):
            return coefficient
        error = min(max(kl / self.target - 1, -STEP), STEP)
        # one rollout may be as long as the horizon many times over: a coefficient never changes its sign
        return coefficient * max(1 + error * answers / self.horizon, 0.0)


def coefficient_state(coefficient: float) -> dict[str, float]:
    """What a checkpoint keeps of it."""
    return {"kl_coefficient": coefficient}


def read_coefficient(state: Mapping[str, Any], start: float) -> float:
    """What a checkpoint kept; `start` where a run begins. Raises `UserError` where it is no coefficient."""
    found = state.get("kl_coefficient", start)
    if isinstance(found, bool) or not isinstance(found, int | float) or not (math.isfinite(found) and found >= 0):
        raise UserError(
            "alignment/kl-coefficient-damaged",
            f"the checkpoint's kl_coefficient is {shown(found, quoted=True)}, and must be a number from 0 up: go on "
            "from another checkpoint",
        )
    return float(found)

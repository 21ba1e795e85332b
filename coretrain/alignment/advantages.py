"""How much better an answer, or a token of it, was than expected: what a policy gradient is multiplied with.

All in float64: a baseline that is subtracted in less loses what the rewards differ in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.sums import Floats, Mask, kept, mean, variance
from coretrain.base.errors import UserError

GROUP_EPS = 1e-4
"""Added to a group's standard deviation. It is far above what rounding makes of equal rewards, even in float32: a group
whose rewards differ by rounding alone gets advantages near 0, not near 1."""
WHITENING_EPS = 1e-8
"""Added to the variance in whitening."""


def gae(rewards: Any, values: Any, mask: Mask, gamma: float, lam: float, after: Any = None) -> Floats:
    """Generalized advantage estimates of each masked token [B, T], 0 elsewhere (Schulman 2016).

    `rewards` and `values` [B, T]: the reward for token t, and what was expected before token t was known. `after` [B]
    is the value of the state behind a row's last token: 0 (as when it isn't given) where the answer is over, be it by
    its end token or since a cut answer is an answer too; an estimate, where it would have gone on.
    Tokens that are not masked are passed over as if they weren't there: padding on either side changes no bit.
    """
    rewards, values = kept(rewards, mask), kept(values, mask)
    advantages = np.zeros(rewards.shape)
    following = np.zeros(len(rewards)) if after is None else np.array(after, np.float64)
    later = np.zeros(len(rewards))
    for place in reversed(range(rewards.shape[1])):
        here = mask[:, place]
        surprise = rewards[:, place] + gamma * following - values[:, place]
        later = np.where(here, surprise + gamma * lam * later, later)
        following = np.where(here, values[:, place], following)
        advantages[here, place] = later[here]
    return advantages


def whitened(values: Any, mask: Mask, shift: bool = True) -> Floats:
    """(values - mean) / sqrt(variance + 1e-8) over all masked tokens; 0 elsewhere. Without `shift` the mean is added
    again, so that only the scale changes (Ouyang 2022).

    The variance is the unbiased one. Equal values become exact zeros; so does a single one.
    """
    whole = kept(values, mask)
    seen = whole[mask]
    middle = mean(seen)
    scaled = (whole - middle) * (variance(seen) + WHITENING_EPS) ** -0.5
    return np.where(mask, scaled if shift else scaled + middle, 0.0)


def members(groups: NDArray[np.integer[Any]], counted: Mask) -> Iterator[NDArray[np.intp]]:
    """The rows of each group that count, by the groups' numbers; none of a group of which no row counts."""
    for group in np.unique(groups[counted]):
        yield np.flatnonzero((groups == group) & counted)


def group_advantages(
    kind: str, rewards: Any, groups: NDArray[np.integer[Any]], counted: Mask | None = None, eps: float = GROUP_EPS
) -> Floats:
    """The advantage of each answer [N] over the others to the same prompt; `groups` [N] says which belong together.

    - `group`: R - mean (Liu 2025, Dr. GRPO)
    - `group_std`: (R - mean) / (std + eps), std with divisor G - 1 (Shao 2024, GRPO)
    - `rloo`: R - mean of the others = G / (G - 1) x (R - mean) (Ahmadian 2024)

    Rows that aren't `counted` are in no mean and get 0. So does a row that is alone in its group: it has nothing to be
    compared with. Where all are equal, all get exactly 0. Raises `UserError` naming a counted row whose reward is no
    finite number.
    """
    rewards = np.asarray(rewards, np.float64)
    counted = np.ones(len(rewards), bool) if counted is None else counted
    check_finite(rewards, counted)
    advantages = np.zeros(len(rewards))
    for rows in members(groups, counted):
        if len(rows) < 2:
            continue
        apart = rewards[rows] - mean(rewards[rows])
        if kind == "group_std":
            apart = apart / (variance(rewards[rows]) ** 0.5 + eps)
        elif kind == "rloo":
            apart = apart * (len(rows) / (len(rows) - 1))
        elif kind != "group":
            raise ValueError(f"{kind} is no advantage of a group")
        advantages[rows] = apart
    return advantages


def without_spread(rewards: Any, groups: NDArray[np.integer[Any]], counted: Mask) -> Mask:
    """Which rows [N] are counted, but in a group whose counted rewards are all equal: they teach nothing."""
    rewards = np.asarray(rewards, np.float64)
    flat = np.zeros(len(rewards), bool)
    for rows in members(groups, counted):
        flat[rows] = rewards[rows].min() == rewards[rows].max()
    return flat


def check_finite(rewards: Floats, counted: Mask) -> None:
    """Raises `UserError` naming the first answer that counts and whose reward is a NaN or infinite."""
    wrong = np.flatnonzero(~np.isfinite(rewards) & counted)
    if len(wrong):
        raise UserError(
            "alignment/answer-without-finite-reward",
            f"the reward of answer {wrong[0]} is {rewards[wrong[0]]}, and no advantage can be made of it: give finite "
            "rewards, or leave the answer out",
        )

"""What an objective tells of an update beside its loss: the figures' names, in the order in which a stack gives them.

In a stack a figure is a sum over the batch of what a token, pair or sequence has, times what it counts. `named` makes
means of these where the counts don't sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coretrain.data.batch import Batch

_PAIR = ("accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob", "rejected_logprob")
_POLICY = ("policy_loss", "kl", "entropy", "ratio", "clip_fraction", "approx_kl")

FIGURES: Mapping[str, tuple[str, ...]] = {
    "cross_entropy": (),
    "reward": ("accuracy", "margin", "chosen_score", "rejected_score"),
    **dict.fromkeys(("dpo", "ipo", "simpo", "orpo"), (*_PAIR, "nll")),
    "kto": ("desirable_reward", "undesirable_reward", "desirable_logprob", "undesirable_logprob", "desirable", "kl"),
    "grpo": _POLICY,
    "ppo": (*_POLICY, "value_loss", "value_clip_fraction"),
}
"""accuracy: share of pairs whose chosen answer scores higher (equal scores count half). margin: chosen less rejected,
of rewards or scores. *_reward: beta times log-probability less the reference's (simpo: beta times the mean; orpo:
lambda times the mean). *_logprob: of an answer, as its loss has it, summed or mean. nll: mean cross-entropy of the
chosen answer. kl: k3 of policy and reference, a token (kto: the baseline z0). entropy: of a token's distribution, in
nats. ratio: new to old probability. clip_fraction: tokens whose term the clip holds. approx_kl: k3 of old and new, a
token. value_loss: half the mean squared error, as it is clipped; value_clip_fraction: tokens whose value's clip
counts."""

SUMS = frozenset({"policy_loss", "value_loss"})
"""Figures that are parts of the loss and stay sums; all others are made means."""

OF_ONE_KIND = {"desirable_reward": 1.0, "desirable_logprob": 1.0, "undesirable_reward": 0.0, "undesirable_logprob": 0.0}


def counted(batch: Batch) -> dict[str, float]:
    """On the host, of the whole batch: what its tokens, pairs or sequences count together, which `named` divides by."""
    planes = batch.planes
    share = next((planes[name] for name in ("share", "pair_share", "sequence_share") if name in planes), None)
    if share is None:
        return {}
    total = {"all": float(np.sum(share, dtype=np.float64)), "kl": float("reference" in planes)}
    if "desirable" in planes:
        total["desirable"] = float(np.sum(share * planes["desirable"], dtype=np.float64))
    return total


def named(objective: str, more: Sequence[float], totals: Mapping[str, float]) -> dict[str, float]:
    """An update's figures by name, as means over what counts. `totals` are its batch's, from `counted`.

    A figure of which nothing counts is left out, as is the KL where the batch has no reference.
    """
    found = {}
    for name, value in zip(FIGURES[objective], more, strict=True):
        if name in SUMS:
            found[name] = value
            continue
        total = totals["all"]
        if name in OF_ONE_KIND:
            desirable = totals["desirable"]
            total = desirable if OF_ONE_KIND[name] else total - desirable
        if total > 0 and (name != "kl" or totals["kl"]):
            found[name] = value / total
    return found

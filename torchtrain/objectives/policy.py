"""Objectives of a policy that learns from what it sampled: PPO's, with a value head, and GRPO's with its kin.

Advantages, returns, shares and corrections are made on the host (`coretrain.alignment`); one row is one answer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coretrain.config.align import AlignConfig
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch
from torchtrain.layers import Dropout
from torchtrain.loss import token_logprobs_and_entropy
from torchtrain.model import GPT
from torchtrain.objectives.sequences import hidden_states, told

LARGEST = 20.0
"""Logarithm of the largest ratio: beyond it no number says anything, and its gradient would not be one."""


class Answers(NamedTuple):
    """What the objectives of a policy have of a batch, token by token."""

    hidden: Float[Tensor, "B T D"]
    counts: Bool[Tensor, "B T"]
    """Which tokens count: 0 stands in all other places."""
    share: Float[Tensor, "B T"]
    logprobs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"]
    log_ratio: Float[Tensor, "B T"]
    """New less old log-probability."""


def answers_of(model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None) -> Answers:
    """Log-probabilities under the policy, at the temperature that sampled, beside the old ones."""
    counts = (batch.labels != IGNORED) & (batch.planes["share"] != 0)
    hidden, chunk, m = hidden_states(model, batch, dropout), config.execution.loss_chunk, config.model
    labels, temperature = batch.labels.where(counts, IGNORED), config.align.temperature
    logprobs, entropy = token_logprobs_and_entropy(
        hidden, model.head_weight, labels, m.vocabulary, chunk, model.tensor, temperature
    )
    old = batch.planes.get("old", logprobs.detach()).where(counts, 0)
    share = batch.planes["share"].where(counts, 0)
    return Answers(hidden, counts, share, logprobs, entropy, logprobs - old)


def grpo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Tensor, dropout: Dropout | None = None) -> Tensor:
    """The clipped policy loss, and the KL to the reference where that is in the loss (Shao et al. 2024).

    Its kin are settings: Dr. GRPO (Liu et al. 2025), DAPO (Yu et al. 2025), GSPO (Zheng et al. 2025), RLOO.
    """
    loss, figures = _policy(config, batch, answers_of(model, config, batch, dropout))
    return told(scale, loss, *figures)


def ppo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Tensor, dropout: Dropout | None = None) -> Tensor:
    """The clipped policy loss and the clipped loss of values (Schulman et al. 2017, Ouyang et al. 2022).

    The value of a token is read where the token is predicted: before it is known.
    """
    answers = answers_of(model, config, batch, dropout)
    loss, figures = _policy(config, batch, answers)
    value_loss, clipped = clipped_value(config.align, batch, model.scores(answers.hidden), answers)
    return told(scale, loss + config.align.value_coefficient * value_loss, *figures, value_loss, clipped)


def _policy(config: RunConfig, batch: Batch, answers: Answers) -> tuple[Tensor, tuple[Tensor, ...]]:
    a, share = config.aligned, answers.share
    ratio, policy_loss, clipped = clipped_policy(a, batch, answers)
    loss, kl = policy_loss, share.new_zeros(())
    if "reference" in batch.planes:
        away = answers.logprobs - batch.planes["reference"].where(answers.counts, 0)
        if a.kl_place == "loss" and a.kl_coefficient:
            penalty = estimated_kl(a.kl, away)
            if a.kl_ratio:
                penalty = penalty * answers.log_ratio.clamp(-LARGEST, LARGEST).exp()
            loss = loss + a.kl_coefficient * (share * penalty).sum()
        kl = (share * estimated_kl("k3", away.detach())).sum()
    with torch.no_grad():
        # of samples of the old policy: k3 of old against new
        moved = estimated_kl("k3", -answers.log_ratio)
        figures = (
            policy_loss,
            kl,
            (share * answers.entropy).sum(),
            (share * ratio).sum(),
            (share * clipped).sum(),
            (share * moved).sum(),
        )
    return loss, figures


def clipped_policy(a: AlignConfig, batch: Batch, answers: Answers) -> tuple[Tensor, Tensor, Tensor]:
    """The ratios [B, T], the clipped policy loss, and where the clip holds [B, T].

    With `align.ratio = sequence` an answer has one ratio, of its mean log-probabilities (GSPO). With a negative
    advantage a term is at most `dual_clip` times it (Ye et al. 2019).
    """
    log_ratio, counts = answers.log_ratio, answers.counts
    if a.ratio == "sequence":
        log_ratio = (log_ratio.sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp_min(1)).where(counts, 0)
    ratio = log_ratio.clamp(-LARGEST, LARGEST).exp()
    advantages = batch.planes["advantages"].where(counts, 0)
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - a.clip_low, 1 + a.clip_high)
    each, clipped = torch.where(held > free, held, free), held > free
    if a.dual_clip is not None:
        most = -advantages * a.dual_clip
        beyond = (advantages < 0) & (each > most)
        each, clipped = torch.where(beyond, most, each), clipped | beyond
    if "correction" in batch.planes:
        each = each * batch.planes["correction"].where(counts, 0)
    return ratio, (answers.share * each).sum(), clipped


def clipped_value(
    a: AlignConfig, batch: Batch, values: Float[Tensor, "B T"], answers: Answers
) -> tuple[Tensor, Tensor]:
    """Half the squared error of values, the larger of it and of that with a value no further than `value_clip` from
    the old one; and what counts of the tokens where that is the larger one."""
    counts, share = answers.counts, answers.share
    old, wanted = (batch.planes[name].where(counts, 0) for name in ("values", "returns"))
    values = values.where(counts, 0)
    each, clipped = (values - wanted) ** 2, torch.zeros_like(counts)
    if a.value_clip:
        held = (old + (values - old).clamp(-a.value_clip, a.value_clip) - wanted) ** 2
        each, clipped = torch.where(held > each, held, each), held > each
    return (share * each).sum() / 2, (share * clipped).sum()


def estimated_kl(kind: str | None, away: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """An estimate of the KL at each token, of how far its log-probability is from the reference's (Schulman 2020)."""
    if kind == "k1":
        return away
    if kind == "k2":
        return away**2 / 2
    return torch.expm1((-away).clamp_max(LARGEST)) + away

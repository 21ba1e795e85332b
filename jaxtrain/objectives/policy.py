"""Objectives of a policy that learns from what it sampled: PPO's, with a value head, and GRPO's with its kin.

Advantages, returns, shares and corrections are made on the host (`coretrain.alignment`); one row is one answer.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from coretrain.config.align import AlignConfig
from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch
from jaxtrain.layers import Dropout
from jaxtrain.loss import token_logprobs_and_entropy
from jaxtrain.model import GPT
from jaxtrain.objectives.sequences import hidden_states, told

LARGEST = 20.0
"""Logarithm of the largest ratio: beyond it no number says anything, and its gradient would not be one."""


class Answers(NamedTuple):
    """What the objectives of a policy have of a batch, token by token."""

    hidden: Float[Array, "B T D"]
    counts: Bool[Array, "B T"]
    """Which tokens count: 0 stands in all other places."""
    share: Float[Array, "B T"]
    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]
    log_ratio: Float[Array, "B T"]
    """New less old log-probability."""


def answers_of(model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None) -> Answers:
    """Log-probabilities under the policy, at the temperature that sampled, beside the old ones."""
    counts = (batch.labels != IGNORED) & (batch.planes["share"] != 0)
    hidden, chunk, m = hidden_states(model, batch, dropout), config.execution.loss_chunk, config.model
    labels, temperature = jnp.where(counts, batch.labels, IGNORED), config.align.temperature
    logprobs, entropy = token_logprobs_and_entropy(hidden, model.head_weight, labels, m.vocabulary, chunk, temperature)
    old = jnp.where(counts, batch.planes.get("old", jax.lax.stop_gradient(logprobs)), 0)
    share = jnp.where(counts, batch.planes["share"], 0)
    return Answers(hidden, counts, share, logprobs, entropy, logprobs - old)


def grpo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """The clipped policy loss, and the KL to the reference where that is in the loss (Shao et al. 2024).

    Its kin are settings: Dr. GRPO (Liu et al. 2025), DAPO (Yu et al. 2025), GSPO (Zheng et al. 2025), RLOO.
    """
    loss, figures = _policy(config, batch, answers_of(model, config, batch, dropout))
    return told(scale, loss, *figures)


def ppo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """The clipped policy loss and the clipped loss of values (Schulman et al. 2017, Ouyang et al. 2022).

    The value of a token is read where the token is predicted: before it is known.
    """
    answers = answers_of(model, config, batch, dropout)
    loss, figures = _policy(config, batch, answers)
    value_loss, clipped = clipped_value(config.align, batch, model.scores(answers.hidden), answers)
    return told(scale, loss + config.align.value_coefficient * value_loss, *figures, value_loss, clipped)


def _policy(config: RunConfig, batch: Batch, answers: Answers) -> tuple[Array, tuple[Array, ...]]:
    a, share = config.aligned, answers.share
    ratio, policy_loss, clipped = clipped_policy(a, batch, answers)
    loss, kl = policy_loss, jnp.zeros((), share.dtype)
    if "reference" in batch.planes:
        away = answers.logprobs - jnp.where(answers.counts, batch.planes["reference"], 0)
        if a.kl_place == "loss" and a.kl_coefficient:
            penalty = estimated_kl(a.kl, away)
            if a.kl_ratio:
                penalty = penalty * jnp.exp(jnp.clip(answers.log_ratio, -LARGEST, LARGEST))
            loss = loss + a.kl_coefficient * (share * penalty).sum()
        kl = (share * estimated_kl("k3", away)).sum()
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


def clipped_policy(a: AlignConfig, batch: Batch, answers: Answers) -> tuple[Array, Array, Array]:
    """The ratios [B, T], the clipped policy loss, and where the clip holds [B, T].

    With `align.ratio = sequence` an answer has one ratio, of its mean log-probabilities (GSPO). With a negative
    advantage a term is at most `dual_clip` times it (Ye et al. 2019).
    """
    log_ratio, counts = answers.log_ratio, answers.counts
    if a.ratio == "sequence":
        mean = log_ratio.sum(1, keepdims=True) / counts.sum(1, keepdims=True).clip(1)
        log_ratio = jnp.where(counts, mean, 0)
    ratio = jnp.exp(jnp.clip(log_ratio, -LARGEST, LARGEST))
    advantages = jnp.where(counts, batch.planes["advantages"], 0)
    free = -advantages * ratio
    held = -advantages * jnp.clip(ratio, 1 - a.clip_low, 1 + a.clip_high)
    each, clipped = jnp.where(held > free, held, free), held > free
    if a.dual_clip is not None:
        most = -advantages * a.dual_clip
        beyond = (advantages < 0) & (each > most)
        each, clipped = jnp.where(beyond, most, each), clipped | beyond
    if "correction" in batch.planes:
        each = each * jnp.where(counts, batch.planes["correction"], 0)
    return ratio, (answers.share * each).sum(), clipped


def clipped_value(a: AlignConfig, batch: Batch, values: Float[Array, "B T"], answers: Answers) -> tuple[Array, Array]:
    """Half the squared error of values, the larger of it and of that with a value no further than `value_clip` from
    the old one; and what counts of the tokens where that is the larger one."""
    counts, share = answers.counts, answers.share
    old, wanted = (jnp.where(counts, batch.planes[name], 0) for name in ("values", "returns"))
    values = jnp.where(counts, values, 0)
    each, clipped = (values - wanted) ** 2, jnp.zeros_like(counts)
    if a.value_clip:
        held = (old + jnp.clip(values - old, -a.value_clip, a.value_clip) - wanted) ** 2
        each, clipped = jnp.where(held > each, held, each), held > each
    return (share * each).sum() / 2, (share * clipped).sum()


def estimated_kl(kind: str | None, away: Float[Array, "B T"]) -> Float[Array, "B T"]:
    """An estimate of the KL at each token, of how far its log-probability is from the reference's (Schulman 2020)."""
    if kind == "k1":
        return away
    if kind == "k2":
        return away**2 / 2
    return jnp.expm1(jnp.minimum(-away, LARGEST)) + away

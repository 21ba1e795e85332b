"""Objectives of preferences: of pairs of answers, and of answers that are labelled right or wrong.

h is an answer's log-probability less the reference's, summed over its tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from jaxtrain.layers import Dropout
from jaxtrain.model import GPT
from jaxtrain.objectives.sequences import answer_logprobs, hidden_states, sequences_of, told


class Pairs(NamedTuple):
    """Numbers of the chosen and of the rejected answers of a batch's pairs."""

    chosen: Float[Array, "B P"]
    rejected: Float[Array, "B P"]

    @property
    def gap(self) -> Float[Array, "B P"]:
        """Chosen less rejected."""
        return self.chosen - self.rejected


def pairs_of(each: Float[Array, "B S"], share: Float[Array, "B P"]) -> Pairs:
    """Sequences' numbers by pairs: 2p is chosen, 2p + 1 rejected; 0 where no pair counts."""
    there = share != 0
    return Pairs(jnp.where(there, each[:, 0::2], 0), jnp.where(there, each[:, 1::2], 0))


def reward_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """-log sigmoid(s_c - s_r - margin) + center (s_c + s_r)^2 of scores at the answers' ends.

    Bradley and Terry 1952, Ouyang et al. 2022; margin: Touvron et al. 2023; centring: Eisenstein et al. 2023.
    """
    share = batch.planes["pair_share"]
    scores = model.scores(hidden_states(model, batch, dropout))
    pairs = pairs_of(sequences_of(batch, 2 * share.shape[1]).ends(scores), share)
    each = -jax.nn.log_sigmoid(pairs.gap - _margin(batch)) + config.align.center * (pairs.chosen + pairs.rejected) ** 2
    return told(
        scale,
        (share * each).sum(),
        (share * _right(pairs)).sum(),
        (share * pairs.gap).sum(),
        (share * pairs.chosen).sum(),
        (share * pairs.rejected).sum(),
    )


def dpo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """-log sigmoid(beta (h_c - h_r) - margin), smoothed (Rafailov et al. 2023; margin: Amini et al. 2024)."""
    a = config.aligned
    logprobs, rewards, nll = _answers(model, config, batch, dropout, a.lengths == "mean", against=True)
    each = _smoothed(rewards.gap - _margin(batch), a.label_smoothing)
    return _preferred(scale, batch, each, logprobs, rewards, nll, a.nll)


def ipo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """(h_c / n_c - h_r / n_r - 1 / (2 beta))^2 (Azar et al. 2023, with means over tokens as its authors use it)."""
    a = config.aligned
    assert a.beta is not None
    logprobs, rewards, nll = _answers(model, config, batch, dropout, a.lengths == "mean", against=True)
    each = (rewards.gap / a.beta - 1 / (2 * a.beta)) ** 2
    return _preferred(scale, batch, each, logprobs, rewards, nll, a.nll)


def simpo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """-log sigmoid(beta (l_c / n_c - l_r / n_r) - gamma), smoothed (Meng et al. 2024): no reference."""
    a = config.aligned
    logprobs, rewards, nll = _answers(model, config, batch, dropout, mean=True, against=False)
    each = _smoothed(rewards.gap - a.simpo_gamma, a.label_smoothing)
    return _preferred(scale, batch, each, logprobs, rewards, nll, a.nll)


def orpo_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """The chosen answer's mean cross-entropy - lambda log sigmoid(log odds_c - log odds_r) (Hong et al. 2024).

    Odds are those of the geometric mean of an answer's probabilities.
    """
    share, weight = batch.planes["pair_share"], config.align.orpo_lambda
    each = answer_logprobs(model, config, batch, dropout)
    logprobs = pairs_of(sequences_of(batch, 2 * share.shape[1]).means(each), share)
    odds = [_log_odds(side, share) for side in logprobs]
    loss = -weight * jax.nn.log_sigmoid(odds[0] - odds[1])
    rewards = Pairs(weight * logprobs.chosen, weight * logprobs.rejected)
    return _preferred(scale, batch, loss, logprobs, rewards, -logprobs.chosen, 1.0)


def kto_loss(model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None) -> Array:
    """1 - sigmoid(beta (h - z0)) of right answers, 1 - sigmoid(beta (z0 - h)) of wrong ones (Ethayarajh et al. 2024).

    z0 is the batch's KL to the reference, which isn't differentiated. Weights are in the shares.
    """
    p, a = batch.planes, config.aligned
    assert a.beta is not None
    share, right = p["sequence_share"], p["desirable"] != 0
    there = share != 0
    sequences, each = sequences_of(batch, share.shape[1]), answer_logprobs(model, config, batch, dropout)
    logprobs = jnp.where(there, sequences.sums(each), 0)
    rewards = a.beta * jnp.where(there, sequences.sums(each - p["reference"]), 0)
    baseline = jnp.where(there, p["kl_baseline"], 0)
    away = rewards - a.beta * baseline
    loss = share * (1 - jax.nn.sigmoid(jnp.where(right, away, -away)))
    return told(
        scale,
        loss.sum(),
        jnp.where(right, share * rewards, 0).sum(),
        jnp.where(right, 0, share * rewards).sum(),
        jnp.where(right, share * logprobs, 0).sum(),
        jnp.where(right, 0, share * logprobs).sum(),
        jnp.where(right, share, 0).sum(),
        (share * baseline).sum(),
    )


def _answers(
    model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None, mean: bool, against: bool
) -> tuple[Pairs, Pairs, Array]:
    """Log-probabilities of the answers, summed or mean; rewards, beta times these, `against` the reference's where
    that is asked; and the chosen answers' mean cross-entropies."""
    beta, share = config.aligned.beta, batch.planes["pair_share"]
    assert beta is not None
    sequences, each = sequences_of(batch, 2 * share.shape[1]), answer_logprobs(model, config, batch, dropout)
    over = sequences.means if mean else sequences.sums
    logprobs = pairs_of(over(each), share)
    held = pairs_of(over(each - batch.planes["reference"]), share) if against else logprobs
    nll = -pairs_of(sequences.means(each), share).chosen
    return logprobs, Pairs(beta * held.chosen, beta * held.rejected), nll


def _preferred(
    scale: Array, batch: Batch, each: Array, logprobs: Pairs, rewards: Pairs, nll: Array, weight: float
) -> Array:
    """Loss and figures of pairs, of `each` pair's loss and `weight` times its chosen answer's cross-entropy."""
    share = batch.planes["pair_share"]
    return told(
        scale,
        (share * (each + weight * nll)).sum(),
        (share * _right(rewards)).sum(),
        (share * rewards.gap).sum(),
        (share * rewards.chosen).sum(),
        (share * rewards.rejected).sum(),
        (share * logprobs.chosen).sum(),
        (share * logprobs.rejected).sum(),
        (share * nll).sum(),
    )


def _smoothed(gap: Array, smoothing: float) -> Array:
    """-log sigmoid(gap), where a share of the pairs is taken to be labelled the wrong way round."""
    return -(1 - smoothing) * jax.nn.log_sigmoid(gap) - smoothing * jax.nn.log_sigmoid(-gap)


def _log_odds(logprob: Array, share: Array) -> Array:
    """log(p / (1 - p)); of a p that is rounded to 1, those of the next smaller number."""
    below = jnp.minimum(jnp.where(share != 0, logprob, -1), -jnp.finfo(logprob.dtype).eps)
    return below - jnp.log(-jnp.expm1(below))


def _margin(batch: Batch) -> Array | float:
    if "margin" not in batch.planes:
        return 0.0
    return jnp.where(batch.planes["pair_share"] != 0, batch.planes["margin"], 0)


def _right(rewards: Pairs) -> Array:
    """1 where the chosen answer is ahead, 1/2 where they are level."""
    return (jnp.sign(rewards.gap) + 1) / 2

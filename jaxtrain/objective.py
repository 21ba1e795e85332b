"""What an update makes smaller, by `train.objective`, and the log-probability of a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from jaxtrain.layers import Cache, Dropout
from jaxtrain.loss import cross_entropy, token_logprobs, token_logprobs_and_likeliest
from jaxtrain.model import GPT
from jaxtrain.objectives.policy import grpo_loss, ppo_loss
from jaxtrain.objectives.preferences import dpo_loss, ipo_loss, kto_loss, orpo_loss, reward_loss, simpo_loss

Objective = Callable[[GPT, RunConfig, Batch, Array, Dropout | None], Array]
"""(model, config, batch, scale, dropout) -> scale x the sum over the batch's targets, a scalar; but for cross-entropy a
vector, of that and of the figures that `coretrain.alignment.figures` names, as they are."""


def cross_entropy_loss(
    model: GPT, config: RunConfig, batch: Batch, scale: Array, dropout: Dropout | None = None
) -> Array:
    """scale x the sum of the cross-entropies of the batch's targets."""
    m, chunk = config.model, config.execution.loss_chunk
    if model.sharding is not None and m.tied and config.adapter.kind == "none":
        model.embed.token.set_value(model.sharding.own_copies(model.embed.token[...]))
    hidden = model(batch.tokens, dropout, batch.positions)
    return cross_entropy(
        hidden, model.head_weight, batch.labels, m.vocabulary, chunk, scale, batch.weights, model.sharding
    )


def label_logprobs(
    model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None = None, temperature: float = 1.0
) -> Array:
    """Log-probability of each label [B, T], of logits / temperature; 0 without a target; can be differentiated."""
    hidden, chunk = model(batch.tokens, dropout, batch.positions), config.execution.loss_chunk
    return token_logprobs(hidden, model.head_weight, batch.labels, config.model.vocabulary, chunk, temperature)


def label_scores(model: GPT, config: RunConfig, batch: Batch) -> Array:
    """Each label's log-probability, and 1 where no id is likelier, [B, T, 2]; 0 without a target."""
    hidden, chunk = model(batch.tokens, None, batch.positions), config.execution.loss_chunk
    head, vocabulary = model.head_weight, config.model.vocabulary
    return jnp.stack(token_logprobs_and_likeliest(hidden, head, batch.labels, vocabulary, chunk), -1)


def branch_scores(
    model: GPT, config: RunConfig, tokens: Array, positions: Array, seen: Array, places: Array, labels: Array
) -> Array:
    """As `label_scores`, of the labels [P] of rows that branch (`coretrain.contract.branches`): [P, 2]."""
    m, (B, T) = model.config, tokens.shape
    empty = jnp.zeros((m.layers, B, T, m.kv, m.head), model.dtype)
    hidden, _ = model.decode(tokens, positions, seen, Cache(empty, empty), jnp.int32(0))
    chunk, head = config.execution.loss_chunk, model.head_weight
    wanted = hidden.reshape(B * T, -1)[places]
    found = token_logprobs_and_likeliest(wanted[None], head, labels[None], m.vocabulary, chunk)
    return jnp.stack(found, -1)[0]


# JAX takes a batch apart into its arrays, those that are there.
jax.tree_util.register_dataclass(Batch, ["tokens", "labels", "positions", "weights", "segments", "planes"], [])

OBJECTIVES: Mapping[str, Objective] = {
    "cross_entropy": cross_entropy_loss,
    "reward": reward_loss,
    "dpo": dpo_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
    "kto": kto_loss,
    "orpo": orpo_loss,
    "ppo": ppo_loss,
    "grpo": grpo_loss,
}
"""By the name that `train.objective` takes."""

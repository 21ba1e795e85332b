"""What an update makes smaller, by `train.objective`, and the log-probability of a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from jax import Array

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from jaxtrain.layers import Dropout
from jaxtrain.loss import cross_entropy, token_logprobs
from jaxtrain.model import GPT

Objective = Callable[[GPT, RunConfig, Batch, Array, Dropout | None], Array]
"""(model, config, batch, scale, dropout) -> scale x the sum over the batch's targets, a scalar."""


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


def label_logprobs(model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None = None) -> Array:
    """Log-probability of each label [B, T], 0 where there is no target; can be differentiated."""
    hidden, chunk = model(batch.tokens, dropout, batch.positions), config.execution.loss_chunk
    return token_logprobs(hidden, model.head_weight, batch.labels, config.model.vocabulary, chunk)


# JAX takes a batch apart into its arrays, those that are there.
jax.tree_util.register_dataclass(Batch, ["tokens", "labels", "positions", "weights"], [])

OBJECTIVES: Mapping[str, Objective] = {"cross_entropy": cross_entropy_loss}
"""By the name that `train.objective` takes."""

"""What an objective reads of a model, token by token, and its sums over the sequences of a row."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch
from jaxtrain.layers import Dropout
from jaxtrain.loss import token_logprobs
from jaxtrain.model import GPT


@dataclass(frozen=True)
class Sequences:
    """The sequences of a batch's rows: of which each token is, of n that a row can have."""

    members: Bool[Array, "B T n"]
    targets: Bool[Array, "B T"]

    def sums(self, each: Float[Array, "B T"]) -> Float[Array, "B n"]:
        """Sums over the targets of each sequence; what lies elsewhere doesn't matter, be it no number."""
        return jnp.where(self.members & self.targets[..., None], each[..., None], 0).sum(1)

    def means(self, each: Float[Array, "B T"]) -> Float[Array, "B n"]:
        """Means over the targets of each sequence; 0 where it has none."""
        return self.sums(each) / self.lengths(each.dtype)

    def lengths(self, dtype: jnp.dtype) -> Float[Array, "B n"]:
        """Targets of each sequence, and at least 1."""
        return (self.members & self.targets[..., None]).sum(1).clip(1).astype(dtype)

    def ends(self, each: Float[Array, "B T"]) -> Float[Array, "B n"]:
        """What each sequence's last token has; 0 where there is no sequence."""
        later = jnp.pad(self.members[:, 1:], ((0, 0), (0, 1), (0, 0)))
        return jnp.where(self.members & ~later, each[..., None], 0).sum(1)


def sequences_of(batch: Batch, count: int) -> Sequences:
    """The sequences of a batch, `count` in a row; without segments each row is one."""
    segments = jnp.zeros_like(batch.tokens) if batch.segments is None else batch.segments
    return Sequences(segments[..., None] == jnp.arange(count), batch.labels != IGNORED)


def hidden_states(model: GPT, batch: Batch, dropout: Dropout | None) -> Float[Array, "B T D"]:
    """What the heads read."""
    hidden: Array = model(batch.tokens, dropout, batch.positions)
    return hidden


def answer_logprobs(model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None) -> Float[Array, "B T"]:
    """Log-probability of each label, 0 where there is no target."""
    hidden, chunk = hidden_states(model, batch, dropout), config.execution.loss_chunk
    return token_logprobs(hidden, model.head_weight, batch.labels, config.model.vocabulary, chunk)


def told(scale: Array, loss: Array, *figures: Array) -> Float[Array, " n"]:
    """scale x loss, and the figures as they are, which aren't differentiated."""
    return jnp.stack([scale * loss, *(jax.lax.stop_gradient(figure).astype(loss.dtype) for figure in figures)])

"""What an update makes smaller, by `train.objective`, and the log-probability of a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from torchtrain.layers import Dropout
from torchtrain.loss import cross_entropy, token_logprobs
from torchtrain.model import GPT

Objective = Callable[[GPT, RunConfig, Batch, Tensor, Dropout | None], Tensor]
"""(model, config, batch, scale, dropout) -> scale x the sum over the batch's targets, a scalar."""


def cross_entropy_loss(
    model: GPT, config: RunConfig, batch: Batch, scale: Tensor, dropout: Dropout | None = None
) -> Tensor:
    """scale x the sum of the cross-entropies of the batch's targets."""
    hidden, chunk = model(batch.tokens, dropout, batch.positions), config.execution.loss_chunk
    vocabulary, head = config.model.vocabulary, model.head_weight
    return cross_entropy(hidden, head, batch.labels, vocabulary, chunk, scale, batch.weights, model.tensor)


def label_logprobs(model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None = None) -> Tensor:
    """Log-probability of each label [B, T], 0 where there is no target; can be differentiated."""
    hidden, chunk = model(batch.tokens, dropout, batch.positions), config.execution.loss_chunk
    return token_logprobs(hidden, model.head_weight, batch.labels, config.model.vocabulary, chunk, model.tensor)


OBJECTIVES: Mapping[str, Objective] = {"cross_entropy": cross_entropy_loss}
"""By the name that `train.objective` takes."""

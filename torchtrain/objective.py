"""What an update makes smaller, by `train.objective`, and the log-probability of a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from torchtrain.layers import Cache, Dropout
from torchtrain.loss import cross_entropy, token_logprobs, token_logprobs_and_likeliest
from torchtrain.model import GPT
from torchtrain.objectives.policy import grpo_loss, ppo_loss
from torchtrain.objectives.preferences import dpo_loss, ipo_loss, kto_loss, orpo_loss, reward_loss, simpo_loss

Objective = Callable[[GPT, RunConfig, Batch, Tensor, Dropout | None], Tensor]
"""(model, config, batch, scale, dropout) -> scale x the sum over the batch's targets, a scalar; but for cross-entropy a
vector, of that and of the figures that `coretrain.alignment.figures` names, as they are."""


def cross_entropy_loss(
    model: GPT, config: RunConfig, batch: Batch, scale: Tensor, dropout: Dropout | None = None
) -> Tensor:
    """scale x the sum of the cross-entropies of the batch's targets."""
    hidden, chunk = model(batch.tokens, dropout, batch.positions), config.execution.loss_chunk
    vocabulary, head = config.model.vocabulary, model.head_weight
    return cross_entropy(hidden, head, batch.labels, vocabulary, chunk, scale, batch.weights, model.tensor)


def label_logprobs(
    model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None = None, temperature: float = 1.0
) -> Tensor:
    """Log-probability of each label [B, T], of logits / temperature; 0 without a target; can be differentiated."""
    hidden, chunk = model(batch.tokens, dropout, batch.positions), config.execution.loss_chunk
    vocabulary, head = config.model.vocabulary, model.head_weight
    return token_logprobs(hidden, head, batch.labels, vocabulary, chunk, model.tensor, temperature)


def label_scores(model: GPT, config: RunConfig, batch: Batch) -> Tensor:
    """Each label's log-probability, and 1 where no id is likelier, [B, T, 2]; 0 without a target."""
    hidden, chunk = model(batch.tokens, None, batch.positions), config.execution.loss_chunk
    vocabulary, head = config.model.vocabulary, model.head_weight
    return torch.stack(token_logprobs_and_likeliest(hidden, head, batch.labels, vocabulary, chunk, model.tensor), -1)


def branch_scores(
    model: GPT, config: RunConfig, tokens: Tensor, positions: Tensor, seen: Tensor, places: Tensor, labels: Tensor
) -> Tensor:
    """As `label_scores`, of the labels [P] of rows that branch (`coretrain.contract.branches`): [P, 2]."""
    m, (B, T) = model.config, tokens.shape
    # keys and values of the layer that is computed: all layers have the same room for them
    keys, values = torch.zeros(2, 1, B, T, model.kv_heads, m.head, dtype=model.dtype, device=tokens.device)
    room = Cache(keys.expand(m.layers, -1, -1, -1, -1), values.expand(m.layers, -1, -1, -1, -1))
    hidden, _ = model.decode(tokens, positions, seen, room, 0)
    chunk, head = config.execution.loss_chunk, model.head_weight
    wanted = hidden.flatten(0, 1)[places]
    found = token_logprobs_and_likeliest(wanted, head, labels, m.vocabulary, chunk, model.tensor)
    return torch.stack(found, -1)


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

"""What an objective reads of a model, token by token, and its sums over the sequences of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from coretrain.config.run import RunConfig
from coretrain.data.batch import IGNORED, Batch
from torchtrain.layers import Dropout
from torchtrain.loss import token_logprobs
from torchtrain.model import GPT


@dataclass(frozen=True)
class Sequences:
    """The sequences of a batch's rows: of which each token is, of n that a row can have."""

    members: Bool[Tensor, "B T n"]
    targets: Bool[Tensor, "B T"]

    def sums(self, each: Float[Tensor, "B T"]) -> Float[Tensor, "B n"]:
        """Sums over the targets of each sequence; what lies elsewhere doesn't matter, be it no number."""
        return each.where(self.targets, 0).unsqueeze(2).where(self.members, 0).sum(1)

    def means(self, each: Float[Tensor, "B T"]) -> Float[Tensor, "B n"]:
        """Means over the targets of each sequence; 0 where it has none."""
        return self.sums(each) / self.lengths(each.dtype)

    def lengths(self, dtype: torch.dtype) -> Float[Tensor, "B n"]:
        """Targets of each sequence, and at least 1."""
        return (self.members & self.targets.unsqueeze(2)).sum(1).clamp_min(1).to(dtype)

    def ends(self, each: Float[Tensor, "B T"]) -> Float[Tensor, "B n"]:
        """What each sequence's last token has; 0 where there is no sequence."""
        later = torch.nn.functional.pad(self.members[:, 1:], (0, 0, 0, 1))
        return each.unsqueeze(2).where(self.members & ~later, 0).sum(1)


def sequences_of(batch: Batch, count: int) -> Sequences:
    """The sequences of a batch, `count` in a row; without segments each row is one."""
    numbers = torch.arange(count, device=batch.tokens.device)
    segments = torch.zeros_like(batch.tokens) if batch.segments is None else batch.segments
    return Sequences(segments.unsqueeze(2) == numbers, batch.labels != IGNORED)


def hidden_states(model: GPT, batch: Batch, dropout: Dropout | None) -> Float[Tensor, "B T D"]:
    """What the heads read."""
    hidden: Tensor = model(batch.tokens, dropout, batch.positions)
    return hidden


def answer_logprobs(model: GPT, config: RunConfig, batch: Batch, dropout: Dropout | None) -> Float[Tensor, "B T"]:
    """Log-probability of each label, 0 where there is no target."""
    hidden, chunk = hidden_states(model, batch, dropout), config.execution.loss_chunk
    return token_logprobs(hidden, model.head_weight, batch.labels, config.model.vocabulary, chunk, model.tensor)


def told(scale: Tensor, loss: Tensor, *figures: Tensor) -> Float[Tensor, " n"]:
    """scale x loss, and the figures as they are, which aren't differentiated."""
    return torch.stack([scale * loss, *(figure.detach().to(loss.dtype) for figure in figures)])

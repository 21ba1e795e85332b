"""Low-rank adapters beside a model's matrices: attached, frozen around, switched, merged and taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coretrain.adapter_bank import AdapterBank
from coretrain.adapters import Target, adapter_targets, added, trained_table, whole_table
from coretrain.config import RunConfig
from coretrain.parameters import pad_vocab


class LowRank(nn.Module):
    """scale x B A x of one matrix: A [r, in], B [out, r], cast from their master dtype to that of x.

    `rate` and `part` are of the dropout on x, which the matrix' own module draws.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int) -> None:
        super().__init__()
        self.scale, self.rate, self.part = config.adapter.scale, config.adapter.dropout, target.part
        self.a = nn.Parameter(torch.empty(target.a.shape))
        self.b = nn.Parameter(torch.empty(rows, config.adapter.rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return F.linear(self.down(x), self.b.to(x.dtype))

    def down(self, x: Tensor) -> Tensor:
        """scale x A x: x [..., in] -> [..., r]."""
        return F.linear(x, self.a.to(x.dtype)) * self.scale

    def look_up(self, tokens: Tensor) -> Tensor:
        """What is added to rows `tokens` [B, T] of an embedding: [B, T, D]."""
        return F.linear(F.embedding(tokens, self.a.T) * self.scale, self.b)


def attach(config: RunConfig, model: Any) -> None:
    """Put an adapter, its tensors still empty, beside every target of `config.adapter`."""
    for target in adapter_targets(config):
        rows = len(model.head.weight) if target.module == "head" else target.b.shape[0]
        module = model.get_submodule(target.module)
        like = model.embed.token
        with like.device:
            module.adapter = LowRank(config, target, rows).to(like.dtype)


def detach(model: Any) -> None:
    """Take out all adapters."""
    for module in model.modules():
        if getattr(module, "adapter", None) is not None:
            module.adapter = None


def freeze(config: RunConfig, model: Any) -> None:
    """Leave gradients to what `config` trains."""
    names = {row.name for row in trained_table(config)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


class Adapters(AdapterBank):
    """Adapters by name over one model that is otherwise left alone: one at a time is at work, or merged, or none.

    All are of the model's own base. Merging and taking out again leaves rounding: 1e-16 of a weight in float64.
    """

    def __init__(self, config: RunConfig, model: Any) -> None:
        super().__init__(config.adapter.quantize)
        self.model = model
        self.biases = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith(".bias")}

    def _fits(self, target: Target) -> bool:
        own = dict(self.model.named_parameters())
        if self.quantize != "none" and target.row.layer is not None:
            return f"{target.module}.held" in dict(self.model.named_modules())
        return target.row.name in own and own[target.row.name].shape[1:] == target.row.shape[1:]

    def _take_off(self) -> None:
        detach(self.model)

    @torch.no_grad()
    def _clear(self) -> None:
        detach(self.model)
        own = dict(self.model.named_parameters())
        for bias, value in self.biases.items():
            own[bias].copy_(value)

    @torch.no_grad()
    def _put(self, config: RunConfig, tensors: Mapping[str, np.ndarray]) -> None:
        attach(config, self.model)
        own = dict(self.model.named_parameters())
        for row in trained_table(config):
            value = pad_vocab(row, tensors[row.name], config.execution.vocab_multiple)
            own[row.name].data = torch.from_numpy(np.array(value)).to(own[row.name])

    @torch.no_grad()
    def _add(self, sign: int) -> None:
        assert self.active is not None
        config, tensors = self.kept[self.active]
        own, rows = dict(self.model.named_parameters()), {row.name: row for row in whole_table(config)}
        for name, delta in added(config, tensors).items():
            value = pad_vocab(rows[name], sign * delta, config.execution.vocab_multiple)
            own[name].copy_(own[name].double() + torch.from_numpy(value).to(own[name].device))

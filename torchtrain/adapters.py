"""Adapters beside a model's matrices and in its sublayers: attached, frozen around, switched, merged, taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coretrain.adapters.bank import AdapterBank
from coretrain.adapters.targets import (
    PARTS,
    Target,
    adapter_targets,
    all_parameters,
    trainable_parameters,
)
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import pad_vocab
from coretrain.contract.rotary import rotary_tables
from coretrain.contract.taps import tap


class LowRank(nn.Module):
    """scale x B A x of one matrix: A [r, in], B [out, r], cast from their master dtype to that of x.

    `rate` and `part` are of the dropout on x, which the matrix' own module draws.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int) -> None:
        super().__init__()
        self.scale, self.rate, self.part = config.adapter.scale, config.adapter.dropout, target.part
        self.tap = f"blocks.#.{PARTS[self.part]}.adapter" if self.part >= 0 else f"{target.module}.adapter"
        self.a = nn.Parameter(torch.empty(target.a.shape))
        self.b = nn.Parameter(torch.empty(rows, config.adapter.rank))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return tap(self.tap, F.linear(self.down(x), self.b.to(x.dtype)))

    def down(self, x: Tensor) -> Tensor:
        """scale x A x: x [..., in] -> [..., r]."""
        return F.linear(x, self.a.to(x.dtype)) * self.scale

    def embedding_delta(self, tokens: Tensor) -> Tensor:
        """What is added to rows `tokens` [B, T] of an embedding: [B, T, D]."""
        return F.linear(F.embedding(tokens, self.a.T) * self.scale, self.b)

    def adapt_linear(self, y: Tensor, x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """y = W x + bias [..., out] with the adapter's own, of x under its mask."""
        return y + self(dropped)

    def adapt_embedding(self, rows: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
        """Rows [B, T, D] of an embedding `table` with the adapter's own."""
        return rows + self.embedding_delta(tokens)

    def head_weight(self, weight: Tensor) -> Tensor:
        """The head's W [V, D] with B beside it: [V, D + r]."""
        return torch.cat([weight, self.b], 1)

    def head_input(self, x: Tensor, dropped: Tensor) -> Tensor:
        """Hidden states [..., D] as wide as `head` is: A x beside x."""
        return torch.cat([x, self.down(dropped)], -1)


class Dora(LowRank):
    """LowRank with a magnitude m for each output: m (W + scale B A) x / ||W + scale B A||, the norm detached.

    Under dropout, as PEFT has it: W x + (f - 1) W drop(x) + f scale B A drop(x), where f is m over the norm.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int) -> None:
        super().__init__(config, target, rows)
        self.m = nn.Parameter(torch.empty(rows))

    def factor(self, weight: Tensor, delta: Tensor, axis: int) -> Tensor:
        """m / ||W + scale delta|| along `axis`, in the master dtype; 1 where m is 0: W has a row of zeros there."""
        norm = norms(weight + self.scale * delta, axis)
        return torch.where(self.m == 0, 1, self.m / torch.where(norm == 0, 1, norm))

    def adapt_linear(self, y: Tensor, x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """y = W x + bias [..., out] with the adapter's own, of x under its mask."""
        factor = self.factor(weight, product(self.b, self.a), 1)
        plain = F.linear(dropped, weight.to(x.dtype)) if dropped is not x else y if bias is None else y - bias
        return y + (factor - 1).to(x.dtype) * plain + factor.to(x.dtype) * self(dropped)

    def adapt_embedding(self, rows: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
        """Rows [B, T, D] of an embedding `table` with the adapter's own."""
        real = table[: self.a.shape[1]]  # without padding
        return self.factor(real, product(self.b, self.a).T, 0) * (rows + self.embedding_delta(tokens))

    def head_weight(self, weight: Tensor) -> Tensor:
        """f W [V, D] with f B beside it; with dropout W, (f - 1) W and f B: [V, 2 D + r]."""
        factor = self.factor(weight, product(self.b, self.a), 1)[:, None]
        if self.rate == 0:
            return torch.cat([factor * weight, factor * self.b], 1)
        return torch.cat([weight, (factor - 1) * weight, factor * self.b], 1)

    def head_input(self, x: Tensor, dropped: Tensor) -> Tensor:
        """Hidden states [..., D] as wide as `head` is."""
        return torch.cat([x, *([] if self.rate == 0 else [dropped]), self.down(dropped)], -1)


def product(b: Tensor, a: Tensor) -> Tensor:
    """B A for a norm, as a batch of one: recomputation would keep a plain product, as it keeps activations."""
    return torch.bmm(b[None], a[None])[0]


def norms(weight: Tensor, axis: int) -> Tensor:
    """||W|| along an axis, a constant in the backward pass."""
    return torch.linalg.vector_norm(weight.detach(), dim=axis)


class Prefix(nn.Module):
    """Keys and values [P, K x C] before those of one layer, the keys in their place before rotated ones.

    The model's tokens keep their rotary positions 0, 1, ...: turning the prefix' keys back by P is the same as counting
    the tokens from P on, since scores depend on differences alone.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int) -> None:
        super().__init__()
        m, count = config.model, config.adapter.virtual_tokens
        self.width, self.turn = m.head, None
        if m.position == "rope":
            self.turn = tuple(tuple(table[count].tolist()) for table in rotary_tables(m, count + 1))
        self.k, self.v = (nn.Parameter(torch.empty(row.shape)) for row in target.tensors)

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, S, K, C] with the prefix before them: [B, P + S, K, C]."""
        return self._before(self.turned(), k), self._before(self.v.unflatten(-1, (-1, self.width)), v)

    def turned(self) -> Tensor:
        """The keys [P, K, C], rotated back by P positions where positions are rotary."""
        keys = self.k.unflatten(-1, (-1, self.width))
        if self.turn is None:
            return keys
        cos, sin = (torch.tensor(part, dtype=keys.dtype, device=keys.device) for part in self.turn)
        first, second = keys.chunk(2, -1)
        return torch.cat([first * cos + second * sin, second * cos - first * sin], -1)

    def _before(self, own: Tensor, x: Tensor) -> Tensor:
        return torch.cat([own.to(x.dtype).expand(len(x), -1, -1, -1), x], 1)


class Bottleneck(nn.Module):
    """y + up act(down y) of a sublayer's output y [..., D]."""

    down: nn.Parameter
    up: nn.Parameter
    down_bias: nn.Parameter | None
    up_bias: nn.Parameter | None

    def __init__(self, config: RunConfig, target: Target, rows: int) -> None:
        super().__init__()
        self.tap = f"blocks.#.{target.module.rpartition('.')[2]}.adapter"
        self.activation = config.adapter.bottleneck_activation
        self.down_bias = self.up_bias = None
        for row in target.tensors:
            setattr(self, row.name.rpartition(".")[2], nn.Parameter(torch.empty(row.shape)))

    def forward(self, y: Tensor) -> Tensor:
        """y [..., D] -> [..., D]."""
        return y + tap(
            self.tap, self.linear(self.activate(self.linear(y, self.down, self.down_bias)), self.up, self.up_bias)
        )

    def activate(self, x: Tensor) -> Tensor:
        """The activation between down and up."""
        if self.activation == "gelu":
            return F.gelu(x, approximate="tanh")
        return {"relu": F.relu, "silu": F.silu}[self.activation](x)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + bias in the dtype of x."""
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


KINDS: dict[str, type[LowRank | Prefix | Bottleneck]] = {
    "lora": LowRank,
    "dora": Dora,
    "prefix": Prefix,
    "bottleneck": Bottleneck,
}
"""By `adapter.kind`."""


def attach(config: RunConfig, model: Any) -> None:
    """Put an adapter, its tensors still empty, at every target of `config.adapter`."""
    for target in adapter_targets(config):
        rows = len(model.head.weight) if target.module == "head" else target.b.shape[0]
        module = model.get_submodule(target.module)
        like = model.embed.token
        with like.device:
            setattr(module, target.slot, KINDS[config.adapter.kind](config, target, rows).to(like.dtype))


def detach(model: Any) -> None:
    """Take out all adapters."""
    for module in model.modules():
        for slot in ("adapter", "prefix"):
            if getattr(module, slot, None) is not None:
                setattr(module, slot, None)


def freeze(config: RunConfig, model: Any) -> None:
    """Leave gradients to what `config` trains."""
    names = {row.name for row in trainable_parameters(config)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


class Adapters(AdapterBank):
    """Adapters by name over one model that is otherwise left alone: one at a time is at work, or merged, or none.

    All are of the model's own base. Merging and taking out again leaves rounding: 1e-16 of a weight in float64.
    """

    def __init__(self, config: RunConfig, model: Any) -> None:
        super().__init__(config)
        self.model = model
        self.biases = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith(".bias")}

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
        for row in trainable_parameters(config):
            value = pad_vocab(row, tensors[row.name], config.execution.vocab_multiple)
            own[row.name].data = torch.from_numpy(np.array(value)).to(own[row.name])

    @torch.no_grad()
    def _add(self, sign: int) -> None:
        assert self.active is not None
        config, _ = self.kept[self.active]
        own, rows = dict(self.model.named_parameters()), {row.name: row for row in all_parameters(config)}
        for name, delta in self._deltas(lambda row: own[row.name][: row.shape[0]].cpu().numpy()).items():
            value = pad_vocab(rows[name], sign * delta, config.execution.vocab_multiple)
            whole = own[name].cpu().double() + torch.from_numpy(value)  # MPS has no float64
            own[name].copy_(whole.to(own[name].dtype))

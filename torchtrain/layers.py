"""The layers of the GPT: linear, norm, attention, MLP, block; and dropout's masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from coretrain.adapters.targets import PARTS
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.randomness import FEATURE_STEP, HASH_MULTIPLIERS, dropout_threshold
from coretrain.contract.taps import tap
from torchtrain.adapters import Bottleneck, LowRank, Prefix
from torchtrain.attention import attention, masked_attention
from torchtrain.few_row_linear import linear
from torchtrain.parallel.axes import (
    ALONE,
    Axis,
    copy_to_tensor_region,
    reduce_from_tensor_region,
)
from torchtrain.quantized import QuantizedWeight

DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}


def compute_dtype(config: RunConfig) -> torch.dtype:
    """Dtype of matmuls and activations."""
    return DTYPES[config.precision.compute]


def master_dtype(config: RunConfig) -> torch.dtype:
    """Dtype of weights, gradients' sum and moments: float64 in float64, else float32."""
    return torch.promote_types(compute_dtype(config), torch.float32)


@dataclass
class Dropout:
    """What a forward pass needs for its masks: keys [1 + 2L] of the update's sites, rows [B] in the global batch.

    With an adapter that has dropout, 7L + 1 keys of its own sites follow.
    """

    keys: Tensor
    rows: Tensor

    def of(self, rows: slice | Tensor) -> Dropout:
        """The masks of some of the rows."""
        return Dropout(self.keys, self.rows[rows])

    def to(self, device: torch.device) -> Dropout:
        """The same on `device`."""
        return Dropout(self.keys.to(device), self.rows.to(device))


@dataclass
class Cache:
    """Keys and values already computed: [L, B, S, K, C] each."""

    keys: Tensor
    values: Tensor


def drop(x: Float[Tensor, "B T D"], rate: float, dropout: Dropout | None, site: int) -> Float[Tensor, "B T D"]:
    """Dropout of x by the mask of `contract.randomness.dropout_mask`; what is kept is over 1 - rate."""
    if rate == 0 or dropout is None:
        return x
    _, T, D = x.shape
    token = dropout.rows[:, None] * T + torch.arange(T, dtype=torch.int32, device=x.device)
    token_hash = _hash32(token ^ dropout.keys[site])
    steps = torch.arange(D, dtype=torch.int32, device=x.device) * _signed(FEATURE_STEP)
    kept = _shift_right(_hash32(token_hash[..., None] + steps), 8) >= dropout_threshold(rate)
    return torch.where(kept, x * (1 / (1 - rate)), 0)


def layer_masks(dropout: Dropout | None, layer: int, layers: int) -> Dropout | None:
    """The masks of one layer's adapters, by their part of the layer; None where those have no dropout."""
    if dropout is None or len(dropout.keys) == 1 + 2 * layers:
        return None
    return Dropout(dropout.keys[1 + 2 * layers :][len(PARTS) * layer :][: len(PARTS)], dropout.rows)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch has no uint32 arithmetic: int32 wraps alike, and the mask makes its arithmetic shift a logical one
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def _hash32(x: Tensor) -> Tensor:
    first, second = (_signed(m) for m in HASH_MULTIPLIERS)
    x = (x ^ _shift_right(x, 16)) * first
    x = (x ^ _shift_right(x, 15)) * second
    return x ^ _shift_right(x, 16)


class Linear(nn.Module):
    """x [..., in] -> [..., out]; the weight [out, in] is cast from its master dtype to that of x.

    With `summed`, each process of that axis has some of the inputs, and their results are added before the bias. An
    adapter adds its own, of x under its mask. A weight in few bits is in `held`, and `weight` None.
    """

    def __init__(self, into: int, out: int, bias: bool, summed: Axis = ALONE) -> None:
        super().__init__()
        self.summed = summed
        self.weight = nn.Parameter(torch.empty(out, into))
        self.bias = nn.Parameter(torch.empty(out)) if bias else None
        self.adapter: LowRank | None = None
        self.held: QuantizedWeight | None = None

    def forward(self, x: Float[Tensor, "... into"], masks: Dropout | None = None) -> Float[Tensor, "... out"]:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.summed.size == 1:
            y = linear(x, self.weight.to(x.dtype), bias) if self.held is None else self._of_held(x, bias)
            if self.adapter is None:
                return y
            dropped = drop(x, self.adapter.rate, masks, self.adapter.part)
            return self.adapter.adapt_linear(y, x, dropped, self.weight, bias)
        total = reduce_from_tensor_region(F.linear(x, self.weight.to(x.dtype)), self.summed)
        return total if bias is None else total + bias

    def _of_held(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert self.held is not None
        y = self.held(x)
        return y if bias is None else y + bias


class Norm(nn.Module):
    """LayerNorm (two-pass variance) or RMSNorm over the last axis, computed in at least float32."""

    def __init__(self, m: ModelConfig) -> None:
        super().__init__()
        self.kind, self.eps = m.norm, m.norm_eps
        self.weight = nn.Parameter(torch.empty(m.width))
        self.bias = nn.Parameter(torch.empty(m.width)) if m.norm == "layernorm" and m.bias else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.kind == "layernorm":
            return F.layer_norm(wide, wide.shape[-1:], self.weight, self.bias, self.eps).to(x.dtype)
        return F.rms_norm(wide, wide.shape[-1:], self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention over x [B, T, D]; each process of the tensor axis has some of the heads."""

    def __init__(self, m: ModelConfig, kernel: str, tensor: Axis = ALONE) -> None:
        super().__init__()
        self.head, self.kernel, self.tensor = m.head, kernel, tensor
        heads, kv = m.heads * m.head // tensor.size, m.kv * m.head // tensor.size
        self.q = Linear(m.width, heads, m.bias)
        self.k = Linear(m.width, kv, m.bias)
        self.v = Linear(m.width, kv, m.bias)
        self.out = Linear(heads, m.width, m.bias, tensor)
        self.prefix: Prefix | None = None
        self.adapter: Bottleneck | None = None

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor] | None,
        masks: Dropout | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        q, k, v = self.heads(x, rotary, masks)
        mixed = tap("blocks.#.attention", attention(self.kernel, q, *self.prefixed(k, v), positions).flatten(2))
        return self.project(mixed, masks)

    def prefixed(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, S, K, C], behind the prefix where there is one."""
        return (k, v) if self.prefix is None else self.prefix(k, v)

    def project(self, mixed: Tensor, masks: Dropout | None = None) -> Tensor:
        """The sublayer's output [B, T, D] from what its heads give, [B, T, H x C]."""
        out = tap("blocks.#.out", self.out(mixed, masks))
        return out if self.adapter is None else self.adapter(out)

    def heads(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, masks: Dropout | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, C], k and v [B, T, K, C], rotated where positions are rotary."""
        x = copy_to_tensor_region(x, self.tensor)
        q, k, v = (part(x, masks).unflatten(-1, (-1, self.head)) for part in (self.q, self.k, self.v))
        q, k, v = tap("blocks.#.q", q), tap("blocks.#.k", k), tap("blocks.#.v", v)
        if rotary is None:
            return q, k, v
        return tap("blocks.#.q_rotated", rotate(q, *rotary)), tap("blocks.#.k_rotated", rotate(k, *rotary)), v


def rotate(
    x: Float[Tensor, "B T H C"], cos: Float[Tensor, "... T C//2"], sin: Float[Tensor, "... T C//2"]
) -> Float[Tensor, "B T H C"]:
    """Rotary positions on x by tables for all rows or for each, half-split, in the tables' dtype."""
    first, second = x.to(cos.dtype).chunk(2, -1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class MLP(nn.Module):
    """GELU (tanh) or SwiGLU, hidden width F, of which each process of the tensor axis has some."""

    def __init__(self, m: ModelConfig, tensor: Axis = ALONE) -> None:
        super().__init__()
        hidden = m.hidden // tensor.size
        self.tensor = tensor
        self.gate = Linear(m.width, hidden, m.bias) if m.mlp == "swiglu" else None
        self.up = Linear(m.width, hidden, m.bias)
        self.down = Linear(hidden, m.width, m.bias, tensor)
        self.adapter: Bottleneck | None = None

    def forward(self, x: Float[Tensor, "B T D"], masks: Dropout | None = None) -> Float[Tensor, "B T D"]:
        x = copy_to_tensor_region(x, self.tensor)
        if self.gate is None:
            hidden = F.gelu(tap("blocks.#.up", self.up(x, masks)), approximate="tanh")
        else:
            hidden = F.silu(tap("blocks.#.gate", self.gate(x, masks))) * tap("blocks.#.up", self.up(x, masks))
        out = tap("blocks.#.down", self.down(tap("blocks.#.activation", hidden), masks))
        return out if self.adapter is None else self.adapter(out)


class Block(nn.Module):
    """One pre-norm decoder block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, m: ModelConfig, layer: int, kernel: str, tensor: Axis = ALONE) -> None:
        super().__init__()
        self.rate, self.layer, self.layers = m.residual_dropout, layer, m.layers
        # not added up in `forward`: torch.compile would make a program for each layer of it, dropout or not
        self.site, self.mlp_site = 1 + 2 * layer, 2 + 2 * layer
        self.norm1 = Norm(m)
        self.attention = Attention(m, kernel, tensor)
        self.norm2 = Norm(m)
        self.mlp = MLP(m, tensor)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rotary: tuple[Tensor, Tensor] | None,
        dropout: Dropout | None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        masks = layer_masks(dropout, self.layer, self.layers)
        normed = tap("blocks.#.norm1", self.norm1(x))
        mixed = self.attention(normed, rotary, masks, positions)
        x = tap("blocks.#.residual1", x + drop(mixed, self.rate, dropout, self.site))
        normed = tap("blocks.#.norm2", self.norm2(x))
        return tap("blocks.#.residual2", x + drop(self.mlp(normed, masks), self.rate, dropout, self.mlp_site))

    def decode(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        keys: Tensor,
        values: Tensor,
        at: int | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode x [B, T, D] whose keys and values are put into slots [at, at + T) of keys and values [B, S, K, C].

        With `at` [B], T is 1 and each row has a slot of its own. `mask` [B, T, S'] is of the first S' slots; what lies
        behind is not read.
        """
        q, k, v = self.attention.heads(self.norm1(x), rotary)
        if isinstance(at, Tensor):
            rows = torch.arange(len(x), device=x.device)
            keys[rows, at], values[rows, at] = k[:, 0], v[:, 0]
        else:
            keys[:, at : at + x.shape[1]], values[:, at : at + x.shape[1]] = k, v
        seen, theirs = self.attention.prefixed(keys[:, : mask.shape[-1]], values[:, : mask.shape[-1]])
        mask = F.pad(mask, (seen.shape[1] - mask.shape[-1], 0), value=True)
        x = x + self.attention.project(masked_attention(q, seen, theirs, mask).flatten(2))
        return x + self.mlp(self.norm2(x)), keys, values

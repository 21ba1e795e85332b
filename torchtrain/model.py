"""The GPT of the contract as PyTorch modules: read it side by side with `jaxtrain/model.py`.

`hold`, `fill`, `part_of` and `block` have no twin: each process holds its part of a tensor, where JAX has whole arrays
with a sharding. `exported` stands with JAX's arrays in `jaxtrain/tensors.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from coretrain.adapters import PARTS, frozen_matrices, whole_table
from coretrain.config import ModelConfig, RunConfig
from coretrain.fragments import Edges, block_of, take
from coretrain.lazy import LazyTensors
from coretrain.parameters import Parameter, check_names_of, check_shape, padded_vocab
from coretrain.randomness import FEATURE_STEP, HASH_MULTIPLIERS, dropout_threshold
from coretrain.tables import rotary_tables
from coretrain.taps import tap
from torchtrain.attention import attention, masked_attention
from torchtrain.lora import Bottleneck, LowRank, Prefix, attach, freeze
from torchtrain.matmul import linear
from torchtrain.parallel import ALONE, Axis, enter, leave
from torchtrain.quantized import Held, make_room, take_over

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


@dataclass
class Cache:
    """Keys and values already computed: [L, B, S, K, C] each."""

    keys: Tensor
    values: Tensor


def drop(x: Tensor, rate: float, dropout: Dropout | None, site: int) -> Tensor:
    """Dropout of x [B, T, D] by the mask of `coretrain.randomness.dropout_mask`; what is kept is over 1 - rate."""
    if rate == 0 or dropout is None:
        return x
    _, T, D = x.shape
    token = dropout.rows[:, None] * T + torch.arange(T, dtype=torch.int32, device=x.device)
    token_hash = _hash32(token ^ dropout.keys[site])
    steps = torch.arange(D, dtype=torch.int32, device=x.device) * _signed(FEATURE_STEP)
    kept = _shift_right(_hash32(token_hash[..., None] + steps), 8) >= dropout_threshold(rate)
    return torch.where(kept, x * (1 / (1 - rate)), 0)


def layer_masks(dropout: Dropout | None, layer: int, layers: int) -> tuple[Dropout, ...]:
    """The masks of one layer's adapters, by their part of the layer; nothing where those have no dropout."""
    if dropout is None or len(dropout.keys) == 1 + 2 * layers:
        return ()
    return (Dropout(dropout.keys[1 + 2 * layers :][len(PARTS) * layer :][: len(PARTS)], dropout.rows),)


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
        self.held: Held | None = None

    def forward(self, x: Tensor, masks: Dropout | None = None) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.summed.size == 1:
            y = linear(x, self.weight.to(x.dtype), bias) if self.held is None else self._of_held(x, bias)
            if self.adapter is None:
                return y
            dropped = drop(x, self.adapter.rate, masks, self.adapter.part)
            return self.adapter.beside(y, x, dropped, self.weight, bias)
        total = leave(F.linear(x, self.weight.to(x.dtype)), self.summed)
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

    def forward(self, x: Tensor) -> Tensor:
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
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, *masks: Dropout, positions: Tensor | None = None
    ) -> Tensor:
        packed = () if positions is None else (positions,)
        q, k, v = self.heads(x, rotary, *masks)
        mixed = tap("blocks.#.attention", attention(self.kernel, q, *self.prefixed(k, v), *packed).flatten(2))
        return self.project(mixed, *masks)

    def prefixed(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k and v [B, S, K, C], behind the prefix where there is one."""
        return (k, v) if self.prefix is None else self.prefix(k, v)

    def project(self, mixed: Tensor, *masks: Dropout) -> Tensor:
        """The sublayer's output [B, T, D] from what its heads give, [B, T, H x C]."""
        out = tap("blocks.#.out", self.out(mixed, *masks))
        return out if self.adapter is None else self.adapter(out)

    def heads(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, *masks: Dropout) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, H, C], k and v [B, T, K, C], rotated where positions are rotary."""
        x = enter(x, self.tensor)
        q, k, v = (part(x, *masks).unflatten(-1, (-1, self.head)) for part in (self.q, self.k, self.v))
        q, k, v = tap("blocks.#.q", q), tap("blocks.#.k", k), tap("blocks.#.v", v)
        if rotary is None:
            return q, k, v
        return tap("blocks.#.q_rotated", rotate(q, *rotary)), tap("blocks.#.k_rotated", rotate(k, *rotary)), v


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [B, T, H, C] by tables [T, C/2] or [B, T, C/2], half-split, in the tables' dtype."""
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

    def forward(self, x: Tensor, *masks: Dropout) -> Tensor:
        x = enter(x, self.tensor)
        if self.gate is None:
            hidden = F.gelu(tap("blocks.#.up", self.up(x, *masks)), approximate="tanh")
        else:
            hidden = F.silu(tap("blocks.#.gate", self.gate(x, *masks))) * tap("blocks.#.up", self.up(x, *masks))
        out = tap("blocks.#.down", self.down(tap("blocks.#.activation", hidden), *masks))
        return out if self.adapter is None else self.adapter(out)


class Block(nn.Module):
    """One pre-norm decoder block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, m: ModelConfig, layer: int, kernel: str, tensor: Axis = ALONE) -> None:
        super().__init__()
        self.site, self.rate, self.layer, self.layers = 1 + 2 * layer, m.residual_dropout, layer, m.layers
        self.norm1 = Norm(m)
        self.attention = Attention(m, kernel, tensor)
        self.norm2 = Norm(m)
        self.mlp = MLP(m, tensor)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        dropout: Dropout | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        masks = layer_masks(dropout, self.layer, self.layers)
        normed = tap("blocks.#.norm1", self.norm1(x))
        mixed = self.attention(normed, rotary, *masks, **({} if positions is None else {"positions": positions}))
        x = tap("blocks.#.residual1", x + drop(mixed, self.rate, dropout, self.site))
        normed = tap("blocks.#.norm2", self.norm2(x))
        return tap("blocks.#.residual2", x + drop(self.mlp(normed, *masks), self.rate, dropout, self.site + 1))

    def step(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor, keys: Tensor, values: Tensor, at: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode x [B, T, D] whose keys and values go to slots [at, at + T) of keys and values [B, S, K, C]."""
        q, k, v = self.attention.heads(self.norm1(x), rotary)
        keys[:, at : at + x.shape[1]], values[:, at : at + x.shape[1]] = k, v
        seen, theirs = self.attention.prefixed(keys, values)
        mask = F.pad(mask, (seen.shape[1] - mask.shape[-1], 0), value=True)
        x = x + self.attention.project(masked_attention(q, seen, theirs, mask).flatten(2))
        return x + self.mlp(self.norm2(x)), keys, values


class Embed(nn.Module):
    """Token embedding [V, D] (rows padded), and learned positions [T, D]."""

    def __init__(self, m: ModelConfig, rows: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(rows, m.width))
        self.position = nn.Parameter(torch.empty(m.context, m.width)) if m.position == "learned" else None
        self.adapter: LowRank | None = None


class Head(nn.Module):
    """An untied output head [V, D] (rows padded)."""

    def __init__(self, m: ModelConfig, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, m.width))
        self.adapter: LowRank | None = None


class GPT(nn.Module):
    """The decoder. Its parameters' names are the table's canonical names.

    Each process of the `tensor` axis has some of the heads, of the hidden width and of the vocabulary; norms,
    positions and the biases of summed layers are on all of them.
    """

    def __init__(self, config: RunConfig, kernel: str, tensor: Axis = ALONE) -> None:
        super().__init__()
        m = config.model
        self.config, self.dtype, self.policy = m, compute_dtype(config), config.execution.checkpoint_activations
        self.tensor, self.kv_heads = tensor, m.kv // tensor.size
        self.sparse = m.tied
        rows = padded_vocab(m, config.execution.vocab_multiple) // tensor.size
        self.embed = Embed(m, rows)
        self.blocks = nn.ModuleList(Block(m, i, kernel, tensor) for i in range(m.layers))
        self.norm = Norm(m)
        self.head = None if m.tied else Head(m, rows)
        attach(config, self)
        make_room(config, self)
        if m.position == "rope":
            wide = torch.promote_types(self.dtype, torch.float32)
            for name, table in zip(("cos", "sin"), rotary_tables(m, m.context), strict=True):
                self.register_buffer(name, torch.from_numpy(table).to(wide), persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """The output head [V, D], padded; the token embedding where the head is tied; [V, D + r] with its adapter's B.

        Hidden states are then as wide, A x beside x, so that their product is W x + scale B A x, chunk by chunk.
        """
        if self.head is None:
            return self.embed.token
        adapter = self.head.adapter
        return self.head.weight if adapter is None else adapter.head(self.head.weight)

    def forward(self, tokens: Tensor, dropout: Dropout | None = None, positions: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, D] after the final norm, for token ids [B, T].

        With `positions` [B, T], rows are packed: each token's position in its sample, whose tokens alone it sees.
        """
        at = slice(tokens.shape[1]) if positions is None else positions
        x = self._embed(tokens, self._positions(at))
        x = tap("embed", drop(x, self.config.embedding_dropout, dropout, 0))
        rotary = (self.cos[at], self.sin[at]) if self.config.position == "rope" else None
        packed = () if positions is None else (positions,)
        for block in self.blocks:
            x = checkpointed(block, self.policy)(x, rotary, dropout, *packed)
        return self._for_head(tap("norm", self.norm(x)), dropout)

    def step(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache, at: int) -> tuple[Tensor, Cache]:
        """Decode tokens [B, T] at `positions` [B, T] into slots [at, at + T) of the cache, under `mask` [B, T, S]."""
        x = self._embed(tokens, None if self.embed.position is None else F.embedding(positions, self.embed.position))
        rotary = (self.cos[positions], self.sin[positions]) if self.config.position == "rope" else None
        for i, block in enumerate(self.blocks):
            x, cache.keys[i], cache.values[i] = block.step(x, rotary, mask, cache.keys[i], cache.values[i], at)
        return self._for_head(self.norm(x)), cache

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Logits [..., V] in at least float32, padding cut off; `head` is `head_weight` where it was made before."""
        logits = linear(hidden, (self.head_weight if head is None else head).to(hidden.dtype))
        logits = (logits if self.tensor.size == 1 else self.tensor.joined(logits))[..., : self.config.vocabulary]
        return tap("logits", logits.to(torch.promote_types(hidden.dtype, torch.float32)))

    def _positions(self, at: slice | Tensor) -> Tensor | None:
        """Learned positions: the first of them, or those of packed rows; where they are none, nothing."""
        learned = self.embed.position
        return None if learned is None else learned[at] if isinstance(at, slice) else F.embedding(at, learned)

    def _for_head(self, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        adapter = None if self.head is None else self.head.adapter
        return x if adapter is None else adapter.for_head(x, drop(x, adapter.rate, dropout, adapter.part))

    def _embed(self, tokens: Tensor, position: Tensor | None) -> Tensor:
        # a tied head makes a dense gradient: on the CPU a sparse one is added into it, sparing two passes over [V, D]
        sparse = self.sparse and tokens.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.tensor.size == 1:
            x = F.embedding(tokens, self.embed.token, sparse=sparse)
        else:
            local = tokens - self.tensor.index * len(self.embed.token)
            here = (local >= 0) & (local < len(self.embed.token))
            rows = F.embedding(local.where(here, 0), self.embed.token, sparse=sparse)
            x = leave(rows.where(here.unsqueeze(-1), 0), self.tensor)
        if self.embed.adapter is not None:
            x = self.embed.adapter.over(x, tokens, self.embed.token)
        return (x if position is None else x + position).to(self.dtype)


def checkpointed(block: Block, policy: str) -> Any:
    """`block` as called in training: activations kept, recomputed (full), or all but matmul outputs recomputed."""
    if policy == "none" or not torch.is_grad_enabled():
        return block
    context = functools.partial(create_selective_checkpoint_contexts, _save_matmuls) if policy == "matmuls" else None
    options = {} if context is None else {"context_fn": context}
    return functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False, **options)


def _save_matmuls(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    saved = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE


def build_model(
    config: RunConfig, kernel: str, tensors: Mapping[str, np.ndarray], device: torch.device, tensor: Axis = ALONE
) -> GPT:
    """A GPT on `device` that holds its part of `tensors` (canonical names, shapes and layout) in its master dtype."""
    with torch.device("meta"):
        model = GPT(config, kernel, tensor)
    return hold(config, model, tensors, device)


def hold(config: RunConfig, model: GPT, tensors: Mapping[str, np.ndarray], device: torch.device) -> GPT:
    """A model made without memory, on `device` and with its part of `tensors`: in its master dtype, but for what is
    frozen and only used in the compute dtype."""
    master, own = master_dtype(config), dict(model.named_parameters())
    model = model.to(master)
    for row in frozen_matrices(config):
        if row.name in own:
            own[row.name].data = own[row.name].data.to(model.dtype)
    model = model.to_empty(device=device)
    if config.model.position == "rope":
        for name, table in zip(("cos", "sin"), rotary_tables(config.model, config.model.context), strict=True):
            getattr(model, name).copy_(torch.from_numpy(table).to(getattr(model, name).dtype))
    fill(config, dict(model.named_parameters()), tensors, model.tensor)
    take_over(config, model, tensors, device)
    freeze(config, model)
    return model


@torch.no_grad()
def fill(
    config: RunConfig,
    tree: Mapping[str, Tensor],
    tensors: Mapping[str, np.ndarray],
    tensor: Axis = ALONE,
    table: Sequence[Parameter] | None = None,
) -> None:
    """Copy this process's part of canonical `tensors` into those of `tree`, one tensor at a time, padding with zeros.

    `table` are the rows that `tensors` must have: all, or those that train. Raises `UserError` where names or shapes
    aren't theirs.
    """
    table = whole_table(config) if table is None else table
    check_names_of(table, tensors, "the parameters")
    for row in table:
        if row.name in tree:
            value = tensors[row.name]
            check_shape(row, value, "the parameters")
            tree[row.name].copy_(torch.from_numpy(part_of(config, row, value, tensor)))


def part_of(config: RunConfig, row: Parameter, value: np.ndarray, tensor: Axis = ALONE) -> np.ndarray:
    """What this process of the tensor axis holds of a whole canonical tensor, padding of the vocabulary included."""
    part = take(value, block(config, row, tensor))
    rows = _rows(config, row) // tensor.size if row.axes[0] == "vocab" else len(part)
    return np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1))) if rows > len(part) else np.array(part)


def block(config: RunConfig, row: Parameter, tensor: Axis = ALONE) -> Edges:
    """Which part of a canonical tensor this process of the tensor axis holds."""
    cut = (tensor.size, tensor.index)
    return block_of(row, _rows(config, row), dict.fromkeys(("vocab", "heads", "kv_heads", "hidden"), cut))


def _rows(config: RunConfig, row: Parameter) -> int:
    multiple = config.execution.vocab_multiple
    return padded_vocab(config.model, multiple) if row.axes[0] == "vocab" else row.shape[0]


def canonical_tensors(config: RunConfig, tree: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Tensors of the table (parameters, gradients or moments) as numpy, canonical, without padding."""
    return dict(exported(config, tree))


def exported(config: RunConfig, tree: Mapping[str, Tensor]) -> LazyTensors:
    """As `canonical_tensors`, each copied when it is asked for."""
    rows = {row.name: row.shape[0] for row in whole_table(config) if row.name in tree}
    return LazyTensors(rows, lambda name: np.array(tree[name].detach()[: rows[name]].cpu().numpy(), order="C"))

"""The GPT of the contract as PyTorch modules: read it side by side with `jaxtrain/model.py`.

`materialize`, `load_tensors`, `local_shard` and `shard_bounds` have no twin: each process holds its part of a tensor,
where JAX has whole arrays with a sharding. Nor has `compile_blocks`: JAX scans layers. `exported` stands with JAX's
arrays in `jaxtrain/arrays.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from coretrain.adapters.targets import all_parameters, frozen_matrices
from coretrain.base.lazy import LazyTensors
from coretrain.checkpoint.fragments import Edges, block_of, take
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import (
    Parameter,
    check_names_of,
    check_shape,
    padded_vocab,
)
from coretrain.contract.rotary import rotary_tables
from coretrain.contract.taps import tap
from torchtrain.adapters import LowRank, attach, freeze
from torchtrain.few_row_linear import linear
from torchtrain.layers import (
    Block,
    Cache,
    Dropout,
    Norm,
    compute_dtype,
    drop,
    master_dtype,
)
from torchtrain.parallel.axes import ALONE, Axis, reduce_from_tensor_region
from torchtrain.quantized import allocate, quantize_into


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


class Score(nn.Module):
    """A score head [1, D]."""

    def __init__(self, m: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, m.width))


class GPT(nn.Module):
    """The decoder. Its parameters' names are the table's canonical names.

    Each process of the `tensor` axis has some of the heads, of the hidden width and of the vocabulary; norms,
    positions and the biases of summed layers are on all of them.
    """

    blocks: nn.ModuleList
    cos: Tensor
    sin: Tensor

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
        self.score = Score(m) if m.score_head else None
        attach(config, self)
        allocate(config, self)
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
        return self.head.weight if adapter is None else adapter.head_weight(self.head.weight)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        dropout: Dropout | None = None,
        positions: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the final norm, for token ids.

        With `positions`, rows are packed: each token's position in its sample, whose tokens alone it sees.
        """
        at = slice(tokens.shape[1]) if positions is None else positions
        x = self._embed(tokens, self._positions(at))
        x = tap("embed", drop(x, self.config.embedding_dropout, dropout, 0))
        rotary = (self.cos[at], self.sin[at]) if self.config.position == "rope" else None
        for block in self.blocks:
            x = checkpointed(block, self.policy)(x, rotary, dropout, positions)
        return self._for_head(tap("norm", self.norm(x)), dropout)

    def decode(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache, at: int | Tensor
    ) -> tuple[Tensor, Cache]:
        """Decode tokens [B, T] at `positions` [B, T] into slots [at, at + T) of the cache, under `mask` [B, T, S].

        With `at` [B], each row's one token goes into a slot of its own.
        """
        x = self._embed(tokens, None if self.embed.position is None else F.embedding(positions, self.embed.position))
        rotary = (self.cos[positions], self.sin[positions]) if self.config.position == "rope" else None
        for i, block in enumerate(cast("Iterable[Block]", self.blocks)):
            x, _, _ = block.decode(x, rotary, mask, cache.keys[i], cache.values[i], at)  # into the cache itself
        return self._for_head(self.norm(x)), cache

    def logits(self, hidden: Tensor, head: Tensor | None = None) -> Tensor:
        """Logits [..., V] in at least float32, padding cut off; `head` is `head_weight` where it was made before."""
        logits = linear(hidden, (self.head_weight if head is None else head).to(hidden.dtype))
        logits = (logits if self.tensor.size == 1 else self.tensor.joined(logits))[..., : self.config.vocabulary]
        return tap("logits", logits.to(torch.promote_types(hidden.dtype, torch.float32)))

    def scores(self, hidden: Tensor) -> Tensor:
        """The score head on hidden states of each position [..., D]: [...], in at least float32."""
        assert self.score is not None, "asked for of models with a score head"
        wide = torch.promote_types(hidden.dtype, torch.float32)
        own = hidden[..., : self.config.width].to(wide)  # what an adapter of the head has beside it is not for scores
        return F.linear(own, self.score.weight.to(wide)).squeeze(-1)

    def _positions(self, at: slice | Tensor) -> Tensor | None:
        """Learned positions: the first of them, or those of packed rows; where they are none, nothing."""
        learned = self.embed.position
        return None if learned is None else learned[at] if isinstance(at, slice) else F.embedding(at, learned)

    def _for_head(self, x: Tensor, dropout: Dropout | None = None) -> Tensor:
        adapter = None if self.head is None else self.head.adapter
        return x if adapter is None else adapter.head_input(x, drop(x, adapter.rate, dropout, adapter.part))

    def _embed(self, tokens: Tensor, position: Tensor | None) -> Tensor:
        # a tied head makes a dense gradient: on the CPU a sparse one is added into it, sparing two passes over [V, D]
        sparse = self.sparse and tokens.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.tensor.size == 1:
            x = F.embedding(tokens, self.embed.token, sparse=sparse)
        else:
            local = tokens - self.tensor.index * len(self.embed.token)
            here = (local >= 0) & (local < len(self.embed.token))
            rows = F.embedding(local.where(here, 0), self.embed.token, sparse=sparse).where(here.unsqueeze(-1), 0)
            if position is None and self.embed.adapter is None:  # nothing is added first: half the bytes are sent
                rows = rows.to(self.dtype)
            x = reduce_from_tensor_region(rows, self.tensor)
        if self.embed.adapter is not None:
            x = self.embed.adapter.adapt_embedding(x, tokens, self.embed.token)
        return (x if position is None else x + position).to(self.dtype)


def checkpointed(block: nn.Module, policy: str) -> Any:
    """`block` as called in training: activations kept, recomputed (full), or all but matmul outputs recomputed."""
    if policy == "none" or not torch.is_grad_enabled():
        return block
    context = functools.partial(create_selective_checkpoint_contexts, _save_matmuls) if policy == "matmuls" else None
    options: dict[str, Any] = {} if context is None else {"context_fn": context}
    return functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False, **options)


def compile_blocks(model: GPT) -> None:
    """Compile the blocks' forward pass in training: few programs for all of them, but with dropout one for each."""
    limit: dict[str, Any] = {"recompile_limit": 8 + len(model.blocks)}  # torch's types don't know it yet
    for block in model.blocks:
        plain = block.forward
        compiled = torch.compile(plain, dynamic=False, **limit)
        # an evaluation would have it compiled once more
        block.forward = functools.partial(_in_training, compiled, plain)


def _in_training(compiled: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Any) -> Tensor:
    return (compiled if torch.is_grad_enabled() else plain)(*given)


def _save_matmuls(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    saved = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE


def build_model(
    config: RunConfig, kernel: str, tensors: Mapping[str, np.ndarray], device: torch.device, tensor: Axis = ALONE
) -> GPT:
    """A GPT on `device` that holds its part of `tensors` (canonical names, shapes and layout) in its master dtype."""
    with torch.device("meta"):
        model = GPT(config, kernel, tensor)
    return materialize(config, model, tensors, device)


def materialize(config: RunConfig, model: GPT, tensors: Mapping[str, np.ndarray], device: torch.device) -> GPT:
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
    load_tensors(config, dict(model.named_parameters()), tensors, model.tensor)
    quantize_into(config, model, tensors, device)
    freeze(config, model)
    return model


@torch.no_grad()
def load_tensors(
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
    table = all_parameters(config) if table is None else table
    check_names_of(table, tensors, "the parameters")
    for row in table:
        if row.name in tree:
            value = tensors[row.name]
            check_shape(row, value, "the parameters")
            tree[row.name].copy_(torch.from_numpy(local_shard(config, row, value, tensor)))


def local_shard(config: RunConfig, row: Parameter, value: np.ndarray, tensor: Axis = ALONE) -> np.ndarray:
    """What this process of the tensor axis holds of a whole canonical tensor, padding of the vocabulary included."""
    part = take(value, shard_bounds(config, row, tensor))
    rows = _rows(config, row) // tensor.size if row.axes[0] == "vocab" else len(part)
    return np.pad(part, ((0, rows - len(part)), *((0, 0),) * (part.ndim - 1))) if rows > len(part) else np.array(part)


def shard_bounds(config: RunConfig, row: Parameter, tensor: Axis = ALONE) -> Edges:
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
    rows = {row.name: row.shape[0] for row in all_parameters(config) if row.name in tree}
    return LazyTensors(rows, lambda name: np.array(tree[name].detach()[: rows[name]].cpu().numpy(), order="C"))

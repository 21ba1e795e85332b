"""The GPT of the contract as Flax NNX modules: read it side by side with `torchtrain/model.py`.

`abstract_model` has no twin: torch makes its parameters with the modules. `look_up` is for one program on many devices.
Nor have `decode_start` and `decode_end`: on a CPU decoding is a program for each part (`decode.Decoder`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import SingleDeviceSharding
from jaxtyping import Float, Int

from coretrain.adapters.targets import all_parameters, frozen_matrices
from coretrain.base.lazy import LazyTensors
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import check_names_of, check_rows, from_jax_tree, padded_vocab
from coretrain.contract.rotary import rotary_tables
from coretrain.contract.taps import tap
from jaxtrain.adapters import LowRank, attach
from jaxtrain.arrays import dotted, placed
from jaxtrain.choices import scans_layers
from jaxtrain.layers import (
    Block,
    Cache,
    Dropout,
    Norm,
    compute_dtype,
    drop,
    master_dtype,
)
from jaxtrain.parallel.pipeline import pipelined
from jaxtrain.parallel.sharding import FSDP, Sharding
from jaxtrain.quantized import allocate, quantize_into


class Embed(nnx.Module):
    """Token embedding [V, D] (rows padded), and learned positions [T, D]."""

    def __init__(self, m: ModelConfig, rows: int, dtype: jnp.dtype) -> None:
        self.token = nnx.Param(jnp.empty((rows, m.width), dtype))
        self.position = nnx.Param(jnp.empty((m.context, m.width), dtype)) if m.position == "learned" else None
        self.adapter: LowRank | None = nnx.data(None)


class Head(nnx.Module):
    """An untied output head [V, D] (rows padded)."""

    def __init__(self, m: ModelConfig, rows: int, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.empty((rows, m.width), dtype))
        self.adapter: LowRank | None = nnx.data(None)


class Score(nnx.Module):
    """A score head [1, D]."""

    def __init__(self, m: ModelConfig, dtype: jnp.dtype) -> None:
        self.weight = nnx.Param(jnp.empty((1, m.width), dtype))


class GPT(nnx.Module):
    """The decoder. Its parameters' paths are the table's `jax_path`s."""

    def __init__(self, config: RunConfig, kernel: str, sharding: Sharding | None = None, *, scan: bool) -> None:
        m, dtype = config.model, master_dtype(config)
        self.sharding = sharding
        self.config, self.dtype, self.policy = m, compute_dtype(config), config.execution.checkpoint_activations
        self.scan = scan
        rows = padded_vocab(m, config.execution.vocab_multiple)
        self.embed = Embed(m, rows, dtype)
        self.blocks = Block(m, kernel, dtype, sharding)
        self.norm = Norm(m, (), dtype)
        self.head = None if m.tied else Head(m, rows, dtype)
        self.score = Score(m, dtype) if m.score_head else None
        attach(config, self)
        allocate(config, self)

    @property
    def head_weight(self) -> Array:
        """The output head [V, D], padded; the token embedding where the head is tied; [V, D + r] with its adapter's B.

        Hidden states are then as wide, A x beside x, so that their product is W x + scale B A x, chunk by chunk.
        """
        if self.head is None:
            return self.embed.token[...]
        weight, adapter = self.head.weight[...], self.head.adapter
        return weight if adapter is None else adapter.head_weight(weight)

    def __call__(
        self,
        tokens: Int[Array, "*A B T"],
        dropout: Dropout | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "*A B T D"]:
        """Hidden states after the final norm, for token ids.

        With `positions`, rows are packed: each token's position in its sample, whose tokens alone it sees.
        Where layers lie in stages, tokens, hidden states and the dropout's rows have a leading axis A of micro-batches.
        """
        at = slice(tokens.shape[-1]) if positions is None else positions
        x = self._embed(tokens, self._positions(at))
        x = tap("embed", drop(x, self.config.embedding_dropout, dropout, 0))
        rotary = self._rotary(at) if self.config.position == "rope" else None
        block, stacked = nnx.split(self.blocks)

        def through(weights: Any, x: Array, dropout: Dropout | None, layers: Array) -> Array:
            def layer(x: Array, item: tuple[Any, Array]) -> tuple[Array, None]:
                weights, index = item
                return self._rows(nnx.merge(block, weights)(x, rotary, dropout, index, positions)), None

            return self._over_layers(checkpointed(layer, self.policy, self.sharding, self.scan), x, weights, layers)[0]

        def stage(weights: Any, x: Array, rows: Array, layers: Array) -> Array:
            return through(weights, x, dropout and Dropout(dropout.keys, rows), layers)

        if tokens.ndim == 2:
            x = through(stacked, x, dropout, jnp.arange(self.config.layers))
        else:
            assert self.sharding is not None
            rows = dropout.rows if dropout else jnp.zeros(tokens.shape[:2], jnp.uint32)
            x = self._rows(pipelined(self.sharding, stage, stacked, x, rows, self.config.layers))
        return self._for_head(tap("norm", self.norm(x)), dropout)

    def decode(self, tokens: Array, positions: Array, mask: Array, cache: Cache, at: Array) -> tuple[Array, Cache]:
        """Decode tokens [B, T] at `positions` [B, T] into slots [at, at + T) of the cache, under `mask` [B, T, S]."""
        x, rotary = self.decode_start(tokens, positions)
        block, stacked = nnx.split(self.blocks)

        def layer(x: Array, item: tuple[Any, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            x, keys, values = nnx.merge(block, item[0]).decode(x, rotary, mask, item[1], item[2], at)
            return x, (keys, values)

        x, (keys, values) = jax.lax.scan(layer, x, (stacked, cache.keys, cache.values))
        return self.decode_end(x), Cache(keys, values)

    def decode_start(self, tokens: Array, positions: Array) -> tuple[Array, tuple[Array, Array] | None]:
        """What the first block is given [B, T, D], and the rotary tables of all blocks."""
        x = self._embed(tokens, None if self.embed.position is None else self.embed.position[...][positions])
        return x, self._rotary(positions) if self.config.position == "rope" else None

    def decode_end(self, x: Array) -> Array:
        """Hidden states for the head, of what the last block gives."""
        return self._for_head(self.norm(x))

    def logits(self, hidden: Array, head: Array | None = None) -> Array:
        """Logits [..., V] in at least float32, padding cut off; `head` is `head_weight` where it was made before."""
        head = self.head_weight if head is None else head
        logits = hidden @ head[: self.config.vocabulary].astype(hidden.dtype).T
        return tap("logits", logits.astype(jnp.promote_types(hidden.dtype, jnp.float32)))

    def scores(self, hidden: Array) -> Array:
        """The score head on hidden states of each position [..., D]: [...], in at least float32."""
        assert self.score is not None, "asked for of models with a score head"
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        own = hidden[..., : self.config.width].astype(
            wide
        )  # what an adapter of the head has beside it is not for scores
        return own @ self.score.weight[...][0].astype(wide)

    def _positions(self, at: slice | Array) -> Array | None:
        """Learned positions: the first of them, or those of packed rows; where they are none, nothing."""
        learned = self.embed.position
        return None if learned is None else self._whole("embed.position", learned[...])[at]

    def _for_head(self, x: Array, dropout: Dropout | None = None) -> Array:
        adapter = None if self.head is None else self.head.adapter
        return x if adapter is None else adapter.head_input(x, drop(x, adapter.rate, dropout, adapter.part))

    def _embed(self, tokens: Array, position: Array | None) -> Array:
        table = self.embed.token[...]
        # cast before devices exchange it, unless something is added first
        dtype = self.dtype if position is None and self.embed.adapter is None else table.dtype
        x = table[tokens] if self.sharding is None else look_up(table, tokens, self.sharding, dtype)
        if self.embed.adapter is not None:
            x = self.embed.adapter.adapt_embedding(x, tokens, table)
        return (x if position is None else x + position).astype(self.dtype)

    def _rows(self, x: Array) -> Array:
        return x if self.sharding is None else self.sharding.rows(x)

    def _whole(self, path: str, weight: Array) -> Array:
        return weight if self.sharding is None else self.sharding.in_use(path, weight, self.dtype)

    def _rotary(self, at: slice | Array) -> tuple[Array, Array]:
        """cos and sin at some positions, as constants of the program."""
        wide = jnp.promote_types(self.dtype, jnp.float32)
        cos, sin = rotary_tables(self.config, self.config.context)
        return jnp.asarray(cos, wide)[at], jnp.asarray(sin, wide)[at]

    def _over_layers(self, layer: Callable[..., Any], x: Array, stacked: Any, layers: Array) -> tuple[Array, None]:
        if self.scan:
            return jax.lax.scan(layer, x, (stacked, layers))
        for i in range(len(layers)):
            x, _ = layer(x, (jax.tree.map(lambda leaf, i=i: leaf[i], stacked), layers[i]))
        return x, None


def look_up(table: Array, tokens: Array, sharding: Sharding, dtype: jnp.dtype) -> Array:
    """Rows `tokens` [..., B, T] of an embedding on a mesh, in `dtype`: each device looks in its share of the rows.

    The embedding is [V, D], or what `Sharding.own_copies` made of it. Where its width is shared (fsdp), a device looks
    the others' tokens up in its own columns too, and all exchange what they found: with fewer tokens on a device than
    rows in the table that sends less than a gathered table, whose gradient would be whole on every device.
    """
    copied = table.ndim == 3
    columns, everywhere = sharding.split("width"), sharding.rules.vocab

    def local(table: Array, tokens: Array) -> Array:
        table = table[0] if copied else table
        exchanged = columns and set(columns) <= set(sharding.rules.batch) and tokens.size <= len(table)
        if exchanged:
            tokens = jax.lax.all_gather(tokens, columns, axis=tokens.ndim - 2, tiled=True)
        else:
            for axis in reversed(columns):  # one at a time, as its gradient goes back: `Way.scattered` says why
                table = jax.lax.all_gather(table, axis, axis=1, tiled=True)
        if sharding.split("vocab"):
            at = tokens - jax.lax.axis_index(everywhere) * len(table)
            found = jnp.where(((at >= 0) & (at < len(table)))[..., None], table[jnp.clip(at, 0, len(table) - 1)], 0)
        else:
            found = table[tokens]
        found = found.astype(dtype)
        if exchanged:
            found = jax.lax.all_to_all(found, columns, found.ndim - 3, found.ndim - 1, tiled=True)
        return jax.lax.psum(found, everywhere)  # of one device it only says that it is the same everywhere

    whole = sharding.copies if copied else sharding.named("vocab", "width").spec
    specs = whole, sharding.tokens(tokens.ndim).spec
    out = sharding.tokens(tokens.ndim, 1).spec
    return jax.shard_map(local, mesh=sharding.mesh, in_specs=specs, out_specs=out)(table, tokens)


def checkpointed(block: Callable[..., Any], policy: str, sharding: Sharding | None = None, scanned: bool = True) -> Any:
    """`block` as called in training: activations kept, recomputed (full), or all but matmul outputs recomputed.

    Weights gathered for a forward pass are in no case kept for the backward pass, which gathers them again.
    """
    # Outside a scan the compiler would find the recomputed values equal to the first ones, and keep those.
    saved = {"none": _all_but_gathered, "matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}.get(policy)
    if policy == "none" and (sharding is None or sharding.size(*FSDP) == 1):
        return block
    return functools.partial(jax.checkpoint, policy=saved, prevent_cse=not scanned)(block)


def _all_but_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy of jax.checkpoint: keep all but what `Sharding.in_use` gathers, a constraint with its own gradient."""
    inner = parameters.get("call_jaxpr")
    return inner is None or all(equation.primitive.name != "sharding_constraint" for equation in inner.eqns)


def build_model(
    config: RunConfig, kernel: str, tensors: Mapping[str, np.ndarray], device: jax.Device | Sharding
) -> GPT:
    """A GPT on `device` that holds `tensors` (canonical names, shapes and layout) in its master dtype, but for what is
    frozen and only used in the compute dtype.

    `tensors` may be lazy: one at a time is held. In JAX `device` may be a mesh, on which the arrays are then shared.
    """
    table = all_parameters(config)
    if isinstance(tensors, dict):
        check_rows(table, tensors, "the parameters")
    else:  # one at a time: not made, neither for its shape nor to see whether it is there
        check_names_of(table, LazyTensors(tensors, tensors.__getitem__), "the parameters")
    graph, state = abstract_model(config, kernel, device)
    flat = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    arrays = quantize_into(config, tensors, flat)
    rest = {path: leaf for path, leaf in flat.items() if path not in arrays}
    arrays |= placed(table, rest, tensors, config.execution.vocab_multiple)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(lambda path, _: arrays[dotted(path)], state))


def abstract_model(config: RunConfig, kernel: str, device: jax.Device | Sharding) -> tuple[Any, Any]:
    """A GPT's structure, and its parameters as shapes, dtypes and the places where they would lie."""
    sharding = device if isinstance(device, Sharding) else None
    scan = scans_layers(config, device if sharding is None else sharding.mesh.devices.flat[0])
    graph, state = nnx.split(nnx.eval_shape(lambda: GPT(config, kernel, sharding, scan=scan)))
    frozen = {row.jax_path for row in frozen_matrices(config)}

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        where = SingleDeviceSharding(device) if sharding is None else sharding.parameter(dotted(path))
        dtype = compute_dtype(config) if dotted(path) in frozen else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where)

    return graph, jax.tree_util.tree_map_with_path(place, state)


def canonical_tensors(config: RunConfig, tree: Any) -> dict[str, np.ndarray]:
    """Tensors of the table (parameters, gradients or moments) as numpy, canonical, without padding."""
    flat = {dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return from_jax_tree(all_parameters(config), flat)

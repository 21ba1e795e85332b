"""The GPT of the contract as Flax NNX modules: read it side by side with `torchtrain/model.py`.

`dotted` has no twin: it turns a path in an NNX tree into the name that torch's parameters have from the start. Nor has
`abstract_model`: torch makes its parameters with the modules. `look_up` is for one program on many devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import SingleDeviceSharding

from coretrain.adapters import PARTS, frozen_matrices, whole_table
from coretrain.config import ModelConfig, RunConfig
from coretrain.parameters import check_rows, from_jax_tree, padded_vocab
from coretrain.randomness import FEATURE_STEP, HASH_MULTIPLIERS, dropout_threshold
from coretrain.tables import rotary_tables
from coretrain.taps import tap
from jaxtrain.attention import attention, masked_attention
from jaxtrain.lora import Bottleneck, LowRank, Prefix, attach
from jaxtrain.pipeline import pipelined
from jaxtrain.quantized import Held, make_room, take_over
from jaxtrain.sharding import Sharding
from jaxtrain.tensors import placed

DTYPES = {name: jnp.dtype(name) for name in ("float64", "float32", "bfloat16", "float16")}


def compute_dtype(config: RunConfig) -> jnp.dtype:
    """Dtype of matmuls and activations."""
    return DTYPES[config.precision.compute]


def master_dtype(config: RunConfig) -> jnp.dtype:
    """Dtype of weights, gradients' sum and moments: float64 in float64, else float32."""
    return jnp.promote_types(compute_dtype(config), jnp.float32)


class Dropout(NamedTuple):
    """What a forward pass needs for its masks: keys [1 + 2L] of the update's sites, rows [B] in the global batch.

    With an adapter that has dropout, 7L + 1 keys of its own sites follow.
    """

    keys: Array
    rows: Array


class Cache(NamedTuple):
    """Keys and values already computed: [L, B, S, K, C] each."""

    keys: Array
    values: Array


def drop(x: Array, rate: float, dropout: Dropout | None, site: int | Array) -> Array:
    """Dropout of x [B, T, D] by the mask of `coretrain.randomness.dropout_mask`; what is kept is over 1 - rate."""
    if rate == 0 or dropout is None:
        return x
    T, D = x.shape[-2:]
    token = dropout.rows.astype(jnp.uint32)[..., None] * T + jnp.arange(T, dtype=jnp.uint32)
    token_hash = _hash32(token ^ dropout.keys[site].astype(jnp.uint32))
    steps = jnp.arange(D, dtype=jnp.uint32) * jnp.uint32(FEATURE_STEP)
    kept = (_hash32(token_hash[..., None] + steps) >> 8) >= dropout_threshold(rate)
    return jnp.where(kept, x * (1 / (1 - rate)), 0)


def layer_masks(dropout: Dropout | None, layer: Array, layers: int) -> tuple[Dropout, ...]:
    """The masks of one layer's adapters, by their part of the layer; nothing where those have no dropout."""
    if dropout is None or len(dropout.keys) == 1 + 2 * layers:
        return ()
    keys = jax.lax.dynamic_slice_in_dim(dropout.keys, 1 + 2 * layers + len(PARTS) * layer, len(PARTS))
    return (Dropout(keys, dropout.rows),)


def _hash32(x: Array) -> Array:
    first, second = (jnp.uint32(m) for m in HASH_MULTIPLIERS)
    x = (x ^ (x >> 16)) * first
    x = (x ^ (x >> 15)) * second
    return x ^ (x >> 16)


class Linear(nnx.Module):
    """x [..., in] -> [..., out]; the kernel [in, out] is cast from its master dtype to that of x.

    An adapter adds its own, of x under its mask. A weight in few bits is in `held`, and `kernel` None.
    """

    def __init__(self, into: int, out: int, bias: bool, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.kernel = nnx.Param(jnp.empty((*stack, into, out), dtype))
        self.bias = nnx.Param(jnp.empty((*stack, out), dtype)) if bias else None
        self.adapter: LowRank | None = nnx.data(None)
        self.held: Held | None = nnx.data(None)

    def __call__(self, x: Array, masks: Dropout | None = None) -> Array:
        y = x @ self.kernel[...].astype(x.dtype) if self.held is None else self.held(x)
        y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
        if self.adapter is None:
            return y
        dropped = drop(x, self.adapter.rate, masks, self.adapter.part)
        return self.adapter.beside(y, x, dropped, self.kernel, self.bias)


class Norm(nnx.Module):
    """LayerNorm (two-pass variance) or RMSNorm over the last axis, computed in at least float32."""

    def __init__(self, m: ModelConfig, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.kind, self.eps = m.norm, m.norm_eps
        self.scale = nnx.Param(jnp.empty((*stack, m.width), dtype))
        self.bias = nnx.Param(jnp.empty((*stack, m.width), dtype)) if m.norm == "layernorm" and m.bias else None

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if self.kind == "layernorm":
            wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps) * self.scale[...]
        return (wide if self.bias is None else wide + self.bias[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention over x [B, T, D]."""

    def __init__(
        self, m: ModelConfig, kernel: str, stack: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None
    ) -> None:
        self.head, self.kernel, self.sharding = m.head, kernel, sharding
        self.q = Linear(m.width, m.heads * m.head, m.bias, stack, dtype)
        self.k = Linear(m.width, m.kv * m.head, m.bias, stack, dtype)
        self.v = Linear(m.width, m.kv * m.head, m.bias, stack, dtype)
        self.out = Linear(m.heads * m.head, m.width, m.bias, stack, dtype)
        self.prefix: Prefix | None = nnx.data(None)
        self.adapter: Bottleneck | None = nnx.data(None)

    def __call__(
        self, x: Array, rotary: tuple[Array, Array] | None, *masks: Dropout, positions: Array | None = None
    ) -> Array:
        packed = () if positions is None else (positions,)
        q, k, v = self.heads(x, rotary, *masks)
        mixed = attention(self.kernel, q, *self.prefixed(k, v), self.sharding, *packed)
        return self.project(tap("blocks.#.attention", mixed.reshape(*x.shape[:2], -1)), *masks)

    def prefixed(self, k: Array, v: Array) -> tuple[Array, Array]:
        """k and v [B, S, K, C], behind the prefix where there is one."""
        return (k, v) if self.prefix is None else self.prefix(k, v)

    def project(self, mixed: Array, *masks: Dropout) -> Array:
        """The sublayer's output [B, T, D] from what its heads give, [B, T, H x C]."""
        out = tap("blocks.#.out", self.out(mixed, *masks))
        return out if self.adapter is None else self.adapter(out)

    def heads(self, x: Array, rotary: tuple[Array, Array] | None, *masks: Dropout) -> tuple[Array, Array, Array]:
        """q [B, T, H, C], k and v [B, T, K, C], rotated where positions are rotary."""
        q, k, v = (part(x, *masks).reshape(*x.shape[:2], -1, self.head) for part in (self.q, self.k, self.v))
        q, k, v = tap("blocks.#.q", q), tap("blocks.#.k", k), tap("blocks.#.v", v)
        if rotary is None:
            return q, k, v
        return tap("blocks.#.q_rotated", rotate(q, *rotary)), tap("blocks.#.k_rotated", rotate(k, *rotary)), v


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary positions on x [B, T, H, C] by tables [T, C/2] or [B, T, C/2], half-split, in the tables' dtype."""
    first, second = jnp.split(x.astype(cos.dtype), 2, -1)
    cos, sin = jnp.expand_dims(cos, -2), jnp.expand_dims(sin, -2)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


class MLP(nnx.Module):
    """GELU (tanh) or SwiGLU, hidden width F."""

    def __init__(self, m: ModelConfig, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.gate = Linear(m.width, m.hidden, m.bias, stack, dtype) if m.mlp == "swiglu" else None
        self.up = Linear(m.width, m.hidden, m.bias, stack, dtype)
        self.down = Linear(m.hidden, m.width, m.bias, stack, dtype)
        self.adapter: Bottleneck | None = nnx.data(None)

    def __call__(self, x: Array, *masks: Dropout) -> Array:
        if self.gate is None:
            hidden = jax.nn.gelu(tap("blocks.#.up", self.up(x, *masks)), approximate=True)
        else:
            hidden = jax.nn.silu(tap("blocks.#.gate", self.gate(x, *masks))) * tap("blocks.#.up", self.up(x, *masks))
        out = tap("blocks.#.down", self.down(tap("blocks.#.activation", hidden), *masks))
        return out if self.adapter is None else self.adapter(out)


class Block(nnx.Module):
    """One pre-norm decoder block: x + attention(norm1(x)), then x + mlp(norm2(x)). All layers' weights lie stacked."""

    def __init__(self, m: ModelConfig, kernel: str, dtype: jnp.dtype, sharding: Sharding | None) -> None:
        # Torch has a list of blocks; here one block holds [L, ...], so that a scan compiles it once.
        self.rate, self.layers = m.residual_dropout, m.layers
        self.norm1 = Norm(m, (m.layers,), dtype)
        self.attention = Attention(m, kernel, (m.layers,), dtype, sharding)
        self.norm2 = Norm(m, (m.layers,), dtype)
        self.mlp = MLP(m, (m.layers,), dtype)

    def __call__(
        self,
        x: Array,
        rotary: tuple[Array, Array] | None,
        dropout: Dropout | None,
        layer: Array,
        positions: Array | None = None,
    ) -> Array:
        site, masks = 1 + 2 * layer, layer_masks(dropout, layer, self.layers)
        normed = tap("blocks.#.norm1", self.norm1(x))
        mixed = self.attention(normed, rotary, *masks, **({} if positions is None else {"positions": positions}))
        x = tap("blocks.#.residual1", x + drop(mixed, self.rate, dropout, site))
        normed = tap("blocks.#.norm2", self.norm2(x))
        return tap("blocks.#.residual2", x + drop(self.mlp(normed, *masks), self.rate, dropout, site + 1))

    def step(
        self, x: Array, rotary: tuple[Array, Array] | None, mask: Array, keys: Array, values: Array, at: Array
    ) -> tuple[Array, Array, Array]:
        """Decode x [B, T, D] whose keys and values go to slots [at, at + T) of keys and values [B, S, K, C]."""
        q, k, v = self.attention.heads(self.norm1(x), rotary)
        keys, values = (jax.lax.dynamic_update_slice_in_dim(old, new, at, 1) for old, new in ((keys, k), (values, v)))
        seen, theirs = self.attention.prefixed(keys, values)
        mask = jnp.pad(mask, ((0, 0), (0, 0), (seen.shape[1] - mask.shape[-1], 0)), constant_values=True)
        x = x + self.attention.project(masked_attention(q, seen, theirs, mask).reshape(*x.shape[:2], -1))
        return x + self.mlp(self.norm2(x)), keys, values


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


class GPT(nnx.Module):
    """The decoder. Its parameters' paths are the table's `jax_path`s."""

    def __init__(self, config: RunConfig, kernel: str, sharding: Sharding | None = None) -> None:
        m, dtype = config.model, master_dtype(config)
        self.sharding = sharding
        self.config, self.dtype, self.policy = m, compute_dtype(config), config.execution.checkpoint_activations
        self.scan = config.execution.scan_layers is not False  # unset: the trainer has decided
        rows = padded_vocab(m, config.execution.vocab_multiple)
        self.embed = Embed(m, rows, dtype)
        self.blocks = Block(m, kernel, dtype, sharding)
        self.norm = Norm(m, (), dtype)
        self.head = None if m.tied else Head(m, rows, dtype)
        attach(config, self)
        make_room(config, self)

    @property
    def head_weight(self) -> Array:
        """The output head [V, D], padded; the token embedding where the head is tied; [V, D + r] with its adapter's B.

        Hidden states are then as wide, A x beside x, so that their product is W x + scale B A x, chunk by chunk.
        """
        if self.head is None:
            return self.embed.token[...]
        weight, adapter = self.head.weight[...], self.head.adapter
        return weight if adapter is None else adapter.head(weight)

    def __call__(self, tokens: Array, dropout: Dropout | None = None, positions: Array | None = None) -> Array:
        """Hidden states [B, T, D] after the final norm, for token ids [B, T].

        With `positions` [B, T], rows are packed: each token's position in its sample, whose tokens alone it sees.
        Where layers lie in stages, tokens, hidden states and the dropout's rows have a leading axis of micro-batches.
        """
        at = slice(tokens.shape[-1]) if positions is None else positions
        x = self._embed(tokens, self._positions(at))
        x = tap("embed", drop(x, self.config.embedding_dropout, dropout, 0))
        rotary = tuple(table[at] for table in self._rotary()) if self.config.position == "rope" else None
        packed = () if positions is None else (positions,)
        block, stacked = nnx.split(self.blocks)

        def through(weights: Any, x: Array, dropout: Dropout | None, layers: Array) -> Array:
            def layer(x: Array, item: tuple[Any, Array]) -> tuple[Array, None]:
                weights, index = item
                return self._rows(nnx.merge(block, self._in_use(weights))(x, rotary, dropout, index, *packed)), None

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

    def step(self, tokens: Array, positions: Array, mask: Array, cache: Cache, at: Array) -> tuple[Array, Cache]:
        """Decode tokens [B, T] at `positions` [B, T] into slots [at, at + T) of the cache, under `mask` [B, T, S]."""
        x = self._embed(tokens, None if self.embed.position is None else self.embed.position[...][positions])
        rotary = tuple(table[positions] for table in self._rotary()) if self.config.position == "rope" else None
        block, stacked = nnx.split(self.blocks)

        def layer(x: Array, item: tuple[Any, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            x, keys, values = nnx.merge(block, item[0]).step(x, rotary, mask, item[1], item[2], at)
            return x, (keys, values)

        x, (keys, values) = jax.lax.scan(layer, x, (stacked, cache.keys, cache.values))
        return self._for_head(self.norm(x)), Cache(keys, values)

    def logits(self, hidden: Array, head: Array | None = None) -> Array:
        """Logits [..., V] in at least float32, padding cut off; `head` is `head_weight` where it was made before."""
        head = self.head_weight if head is None else head
        logits = hidden @ head[: self.config.vocabulary].astype(hidden.dtype).T
        return tap("logits", logits.astype(jnp.promote_types(hidden.dtype, jnp.float32)))

    def _positions(self, at: slice | Array) -> Array | None:
        """Learned positions: the first of them, or those of packed rows; where they are none, nothing."""
        learned = self.embed.position
        return None if learned is None else self._whole("embed.position", learned[...])[at]

    def _for_head(self, x: Array, dropout: Dropout | None = None) -> Array:
        adapter = None if self.head is None else self.head.adapter
        return x if adapter is None else adapter.for_head(x, drop(x, adapter.rate, dropout, adapter.part))

    def _embed(self, tokens: Array, position: Array | None) -> Array:
        table = self.embed.token[...]
        x = table[tokens] if self.sharding is None else look_up(table, tokens, self.sharding)
        if self.embed.adapter is not None:
            x = self.embed.adapter.over(x, tokens, table)
        return (x if position is None else x + position).astype(self.dtype)

    def _rows(self, x: Array) -> Array:
        return x if self.sharding is None else self.sharding.rows(x)

    def _in_use(self, weights: Any) -> Any:
        """One layer's weights, gathered from the devices that share them."""
        if self.sharding is None:
            return weights
        return jax.tree_util.tree_map_with_path(lambda path, w: self._whole(f"blocks.{dotted(path)}", w), weights)

    def _whole(self, path: str, weight: Array) -> Array:
        return weight if self.sharding is None else self.sharding.in_use(path, weight, self.dtype)

    def _rotary(self) -> tuple[Array, Array]:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        cos, sin = rotary_tables(self.config, self.config.context)
        return jnp.asarray(cos, wide), jnp.asarray(sin, wide)

    def _over_layers(self, layer: Callable[..., Any], x: Array, stacked: Any, layers: Array) -> tuple[Array, None]:
        if self.scan:
            return jax.lax.scan(layer, x, (stacked, layers))
        for i in range(len(layers)):
            x, _ = layer(x, (jax.tree.map(lambda leaf, i=i: leaf[i], stacked), layers[i]))
        return x, None


def look_up(table: Array, tokens: Array, sharding: Sharding) -> Array:
    """Rows `tokens` [..., B, T] of an embedding on a mesh: each device looks in its share of the rows.

    The embedding is [V, D], or what `Sharding.own_copies` made of it.
    """
    copied = table.ndim == 3
    columns, everywhere = sharding.split("width"), sharding.rules.vocab

    def local(table: Array, tokens: Array) -> Array:
        table = table[0] if copied else table
        for axis in columns:
            table = jax.lax.all_gather(table, axis, axis=1, tiled=True)
        if not sharding.split("vocab"):
            return jax.lax.psum(table[tokens], everywhere)  # of one device: only says that it is the same everywhere
        at = tokens - jax.lax.axis_index(everywhere) * len(table)
        found = jnp.where(((at >= 0) & (at < len(table)))[..., None], table[jnp.clip(at, 0, len(table) - 1)], 0)
        return jax.lax.psum(found, everywhere)

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
    if policy == "none" and (sharding is None or sharding.size("fsdp") == 1):
        return block
    return functools.partial(jax.checkpoint, policy=saved, prevent_cse=not scanned)(block)


def _all_but_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """A policy of jax.checkpoint: keep all but what `Sharding.in_use` gathers, a constraint with its own gradient."""
    inner = parameters.get("call_jaxpr")
    return inner is None or not inner.eqns or inner.eqns[-1].primitive.name != "sharding_constraint"


def build_model(
    config: RunConfig, kernel: str, tensors: Mapping[str, np.ndarray], device: jax.Device | Sharding
) -> GPT:
    """A GPT on `device` that holds `tensors` (canonical names, shapes and layout) in its master dtype, but for what is
    frozen and only used in the compute dtype.

    `tensors` may be lazy: one at a time is held. In JAX `device` may be a mesh, on which the arrays are then shared.
    """
    table = whole_table(config)
    shapes = {row.name: np.broadcast_to(np.float32(0), row.shape) for row in table}
    known = tensors if isinstance(tensors, dict) else {name: shapes.get(name) for name in tensors}
    check_rows(table, known, "the parameters")
    graph, state = abstract_model(config, kernel, device)
    flat = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    arrays = take_over(config, tensors, flat)
    rest = {path: leaf for path, leaf in flat.items() if path not in arrays}
    arrays |= placed(table, rest, tensors, config.execution.vocab_multiple)
    return nnx.merge(graph, jax.tree_util.tree_map_with_path(lambda path, _: arrays[dotted(path)], state))


def abstract_model(config: RunConfig, kernel: str, device: jax.Device | Sharding) -> tuple[Any, Any]:
    """A GPT's structure, and its parameters as shapes, dtypes and the places where they would lie."""
    sharding = device if isinstance(device, Sharding) else None
    graph, state = nnx.split(nnx.eval_shape(lambda: GPT(config, kernel, sharding)))
    frozen = {row.jax_path for row in frozen_matrices(config)}

    def place(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        where = SingleDeviceSharding(device) if sharding is None else sharding.parameter(dotted(path))
        dtype = compute_dtype(config) if dotted(path) in frozen else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where)

    return graph, jax.tree_util.tree_map_with_path(place, state)


def canonical_tensors(config: RunConfig, tree: Any) -> dict[str, np.ndarray]:
    """Tensors of the table (parameters, gradients or moments) as numpy, canonical, without padding."""
    flat = {dotted(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return from_jax_tree(whole_table(config), flat)


def dotted(path: Any) -> str:
    """The table's `jax_path` of a leaf, from its path in a tree of the parameters' form."""
    return ".".join(str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))

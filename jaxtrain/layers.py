"""The layers of the GPT: linear, norm, attention, MLP, block; and dropout's masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from coretrain.adapters.targets import PARTS
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.randomness import FEATURE_STEP, HASH_MULTIPLIERS, dropout_threshold
from coretrain.contract.taps import tap
from jaxtrain.adapters import Bottleneck, LowRank, Prefix
from jaxtrain.attention import attention, masked_attention
from jaxtrain.parallel.sharding import Sharding
from jaxtrain.quantized import QuantizedWeight
from jaxtrain.wide import plus, product

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

    keys: Any
    rows: Any


class Cache(NamedTuple):
    """Keys and values already computed: [L, B, S, K, C] each."""

    keys: Array
    values: Array


def drop(
    x: Float[Array, "*A B T D"], rate: float, dropout: Dropout | None, site: int | Array
) -> Float[Array, "*A B T D"]:
    """Dropout of x by the mask of `contract.randomness.dropout_mask`; what is kept is over 1 - rate."""
    if rate == 0 or dropout is None:
        return x
    T, D = x.shape[-2:]
    token = dropout.rows.astype(jnp.uint32)[..., None] * T + jnp.arange(T, dtype=jnp.uint32)
    token_hash = _hash32(token ^ dropout.keys[site].astype(jnp.uint32))
    steps = jnp.arange(D, dtype=jnp.uint32) * jnp.uint32(FEATURE_STEP)
    kept = (_hash32(token_hash[..., None] + steps) >> 8) >= dropout_threshold(rate)
    return jnp.where(kept, x * (1 / (1 - rate)), 0)


def layer_masks(dropout: Dropout | None, layer: Array, layers: int) -> Dropout | None:
    """The masks of one layer's adapters, by their part of the layer; None where those have no dropout."""
    if dropout is None or len(dropout.keys) == 1 + 2 * layers:
        return None
    keys = jax.lax.dynamic_slice_in_dim(dropout.keys, 1 + 2 * layers + len(PARTS) * layer, len(PARTS))
    return Dropout(keys, dropout.rows)


def _hash32(x: Array) -> Array:
    first, second = (jnp.uint32(m) for m in HASH_MULTIPLIERS)
    x = (x ^ (x >> 16)) * first
    x = (x ^ (x >> 15)) * second
    return x ^ (x >> 16)


class Linear(nnx.Module):
    """x [..., in] -> [..., out]; the kernel [in, out] is cast from its master dtype to that of x.

    An adapter adds its own, of x under its mask. A weight in few bits is in `held`, and `kernel` None. On a mesh the
    kernel is gathered from the devices that share it; `path` is where it lies in the model.
    """

    def __init__(
        self,
        into: int,
        out: int,
        bias: bool,
        stack: tuple[int, ...],
        dtype: jnp.dtype,
        sharding: Sharding | None = None,
        path: str = "",
    ) -> None:
        self.sharding, self.path = sharding, path
        self.kernel = nnx.Param(jnp.empty((*stack, into, out), dtype))
        self.bias = nnx.Param(jnp.empty((*stack, out), dtype)) if bias else None
        self.adapter: LowRank | None = nnx.data(None)
        self.held: QuantizedWeight | None = nnx.data(None)

    def __call__(
        self, x: Float[Array, "... into"], masks: Dropout | None = None, kernel: Any = None
    ) -> Float[Array, "... out"]:
        """`kernel` is what `whole` gave, where that was asked before."""
        if self.held is not None:
            y = self.held(x)
        else:
            (x,), kernel = self.whole(x) if kernel is None else ((x,), kernel)
            sums = None if self.sharding is None else self.sharding.sums(self.path)
            y = product(self._rows(x), kernel, sums).reshape(*x.shape[:-1], -1)
        y = y if self.bias is None else plus(y, self.bias[...])
        if self.adapter is None:
            return y
        dropped = drop(x, self.adapter.rate, masks, self.adapter.part)
        return self.adapter.adapt_linear(y, x, dropped, kernel, self.bias)

    def whole(self, *before: Array) -> tuple[tuple[Array, ...], Any]:
        """`before`, a matmul's input and what else is computed first; and the kernel as that matmul uses it.

        It is whole along fsdp (None: in few bits). On the way back the kernel's gradient is done first.
        """
        if self.held is not None:
            return before, None
        if self.sharding is None:
            return before, self.kernel[...]
        return self.sharding.in_use_after(self.path, before, self.kernel[...])

    def _rows(self, x: Array) -> Array:
        # A kernel's gradient that sums over two axes has XLA's CPU turn one of its factors, slowly: all tokens are made
        # one axis. On a mesh they lie along two, which can't be one without gathering.
        return x if self.sharding else x.reshape(-1, x.shape[-1])


class Norm(nnx.Module):
    """LayerNorm (two-pass variance) or RMSNorm over the last axis, computed in at least float32."""

    def __init__(self, m: ModelConfig, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.kind, self.eps = m.norm, m.norm_eps
        self.scale = nnx.Param(jnp.empty((*stack, m.width), dtype))
        self.bias = nnx.Param(jnp.empty((*stack, m.width), dtype)) if m.norm == "layernorm" and m.bias else None

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
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

        def linear(name: str, into: int, out: int) -> Linear:
            return Linear(into, out, m.bias, stack, dtype, sharding, f"blocks.attention.{name}.kernel")

        self.q = linear("q", m.width, m.heads * m.head)
        self.k = linear("k", m.width, m.kv * m.head)
        self.v = linear("v", m.width, m.kv * m.head)
        self.out = linear("out", m.heads * m.head, m.width)
        self.prefix: Prefix | None = nnx.data(None)
        self.adapter: Bottleneck | None = nnx.data(None)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotary: tuple[Array, Array] | None,
        masks: Dropout | None = None,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        q, k, v = self.heads(x, rotary, masks)
        mixed = attention(self.kernel, q, *self.prefixed(k, v), positions, self.sharding)
        return self.project(tap("blocks.#.attention", mixed.reshape(*x.shape[:2], -1)), masks)

    def prefixed(self, k: Array, v: Array) -> tuple[Array, Array]:
        """k and v [B, S, K, C], behind the prefix where there is one."""
        return (k, v) if self.prefix is None else self.prefix(k, v)

    def project(self, mixed: Array, masks: Dropout | None = None) -> Array:
        """The sublayer's output [B, T, D] from what its heads give, [B, T, H x C]."""
        out = tap("blocks.#.out", self.out(mixed, masks))
        return out if self.adapter is None else self.adapter(out)

    def heads(
        self, x: Array, rotary: tuple[Array, Array] | None, masks: Dropout | None = None
    ) -> tuple[Array, Array, Array]:
        """q [B, T, H, C], k and v [B, T, K, C], rotated where positions are rotary."""
        q, k, v = (part(x, masks).reshape(*x.shape[:2], -1, self.head) for part in (self.q, self.k, self.v))
        q, k, v = tap("blocks.#.q", q), tap("blocks.#.k", k), tap("blocks.#.v", v)
        if rotary is None:
            return q, k, v
        return tap("blocks.#.q_rotated", rotate(q, *rotary)), tap("blocks.#.k_rotated", rotate(k, *rotary)), v


def rotate(
    x: Float[Array, "B T H C"], cos: Float[Array, "... T C//2"], sin: Float[Array, "... T C//2"]
) -> Float[Array, "B T H C"]:
    """Rotary positions on x by tables for all rows or for each, half-split, in the tables' dtype."""
    first, second = jnp.split(x.astype(cos.dtype), 2, -1)
    cos, sin = jnp.expand_dims(cos, -2), jnp.expand_dims(sin, -2)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


class MLP(nnx.Module):
    """GELU (tanh) or SwiGLU, hidden width F."""

    def __init__(self, m: ModelConfig, stack: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding | None) -> None:
        def linear(name: str, into: int, out: int) -> Linear:
            return Linear(into, out, m.bias, stack, dtype, sharding, f"blocks.mlp.{name}.kernel")

        self.gate = linear("gate", m.width, m.hidden) if m.mlp == "swiglu" else None
        self.up = linear("up", m.width, m.hidden)
        self.down = linear("down", m.hidden, m.width)
        self.adapter: Bottleneck | None = nnx.data(None)

    def __call__(self, x: Float[Array, "B T D"], masks: Dropout | None = None) -> Float[Array, "B T D"]:
        if self.gate is None:
            hidden = jax.nn.gelu(tap("blocks.#.up", self.up(x, masks)), approximate=True)
        else:
            (x, gate), kernel = self.up.whole(x, tap("blocks.#.gate", self.gate(x, masks)))
            hidden = jax.nn.silu(gate) * tap("blocks.#.up", self.up(x, masks, kernel))
        out = tap("blocks.#.down", self.down(tap("blocks.#.activation", hidden), masks))
        return out if self.adapter is None else self.adapter(out)


class Block(nnx.Module):
    """One pre-norm decoder block: x + attention(norm1(x)), then x + mlp(norm2(x)). All layers' weights lie stacked."""

    def __init__(self, m: ModelConfig, kernel: str, dtype: jnp.dtype, sharding: Sharding | None) -> None:
        # Torch has a list of blocks; here one block holds [L, ...], so that a scan compiles it once.
        self.rate, self.layers = m.residual_dropout, m.layers
        self.norm1 = Norm(m, (m.layers,), dtype)
        self.attention = Attention(m, kernel, (m.layers,), dtype, sharding)
        self.norm2 = Norm(m, (m.layers,), dtype)
        self.mlp = MLP(m, (m.layers,), dtype, sharding)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        rotary: tuple[Array, Array] | None,
        dropout: Dropout | None,
        layer: Array,
        positions: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        site, masks = 1 + 2 * layer, layer_masks(dropout, layer, self.layers)
        normed = tap("blocks.#.norm1", self.norm1(x))
        mixed = self.attention(normed, rotary, masks, positions)
        x = tap("blocks.#.residual1", x + drop(mixed, self.rate, dropout, site))
        normed = tap("blocks.#.norm2", self.norm2(x))
        return tap("blocks.#.residual2", x + drop(self.mlp(normed, masks), self.rate, dropout, site + 1))

    def decode(
        self, x: Array, rotary: tuple[Array, Array] | None, mask: Array, keys: Array, values: Array, at: Array
    ) -> tuple[Array, Array, Array]:
        """Decode x [B, T, D] whose keys and values go to slots [at, at + T) of keys and values [B, S, K, C]."""
        q, k, v = self.attention.heads(self.norm1(x), rotary)
        keys, values = (jax.lax.dynamic_update_slice_in_dim(old, new, at, 1) for old, new in ((keys, k), (values, v)))
        seen, theirs = self.attention.prefixed(keys, values)
        mask = jnp.pad(mask, ((0, 0), (0, 0), (seen.shape[1] - mask.shape[-1], 0)), constant_values=True)
        x = x + self.attention.project(masked_attention(q, seen, theirs, mask).reshape(*x.shape[:2], -1))
        return x + self.mlp(self.norm2(x)), keys, values

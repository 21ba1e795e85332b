"""Adapters beside a model's matrices and in its sublayers: attached, frozen around, switched, merged, taken out.

`partition` and `combine` have no twin: a torch model holds what trains and what doesn't together, and marks it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from coretrain.adapters.bank import AdapterBank
from coretrain.adapters.targets import (
    PARTS,
    Target,
    adapter_targets,
    all_parameters,
    trainable_parameters,
)
from coretrain.base.lazy import LazyTensors
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import Parameter, from_jax_tree, parameter_table
from coretrain.contract.rotary import rotary_tables
from coretrain.contract.taps import tap
from jaxtrain import wide
from jaxtrain.arrays import placed


class LowRank(nnx.Module):
    """scale x B A x of one matrix: A [in, r], B [r, out] in blocks, cast from their master dtype to that of x.

    `rate` and `part` are of the dropout on x, which the matrix' own module draws. Beside embeddings and head A and B
    lie as in torch. Layers that are no targets have zeros for both, which get gradients of zero.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.scale, self.rate, self.part = config.adapter.scale, config.adapter.dropout, target.part
        self.tap = f"blocks.#.{PARTS[self.part]}.adapter" if self.part >= 0 else f"{target.module}.adapter"
        a, b = target.a.shape, (rows, config.adapter.rank)
        if target.row.transposed:
            a, b = a[::-1], b[::-1]
        self.a = nnx.Param(jnp.empty((*stack, *a), dtype))
        self.b = nnx.Param(jnp.empty((*stack, *b), dtype))

    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., out]."""
        return tap(self.tap, _low_rank(x, self.a[...], self.b[...], self.scale))

    def down(self, x: Array) -> Array:
        """scale x A x, of the head: x [..., in] -> [..., r]."""
        return wide.product(x, self.a[...].T) * self.scale

    def embedding_delta(self, tokens: Array) -> Array:
        """What is added to rows `tokens` [B, T] of an embedding: [B, T, D]."""
        return self.a[...].T[tokens] * self.scale @ self.b[...].T

    def adapt_linear(self, y: Array, x: Array, dropped: Array, weight: Array, bias: nnx.Param | None) -> Array:
        """y = W x + bias [..., out] with the adapter's own, of x under its mask."""
        return y + self(dropped)

    def adapt_embedding(self, rows: Array, tokens: Array, table: Array) -> Array:
        """Rows [B, T, D] of an embedding `table` with the adapter's own."""
        return rows + self.embedding_delta(tokens)

    def head_weight(self, weight: Array) -> Array:
        """The head's W [V, D] with B beside it: [V, D + r]."""
        return jnp.concatenate([weight, self.b[...]], 1)

    def head_input(self, x: Array, dropped: Array) -> Array:
        """Hidden states [..., D] as wide as `head` is: A x beside x."""
        return jnp.concatenate([x, self.down(dropped)], -1)


class Dora(LowRank):
    """LowRank with a magnitude m for each output: m (W + scale B A) x / ||W + scale B A||, the norm detached.

    Under dropout, as PEFT has it: W x + (f - 1) W drop(x) + f scale B A drop(x), where f is m over the norm. Layers
    that are no targets have zeros for m too, and f is 1.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        super().__init__(config, target, rows, stack, dtype)
        self.m = nnx.Param(jnp.empty((*stack, rows), dtype))

    def factor(self, weight: Array, delta: Array, axis: int) -> Array:
        """m / ||W + scale delta|| along `axis`, in the master dtype; 1 where m is 0: W has a row of zeros there."""
        m, norm = self.m[...], norms(weight + self.scale * delta, axis)
        return jnp.where(m == 0, 1, m / jnp.where(norm == 0, 1, norm))

    def adapt_linear(self, y: Array, x: Array, dropped: Array, weight: Array, bias: nnx.Param | None) -> Array:
        """y = W x + bias [..., out] with the adapter's own, of x under its mask."""
        factor = self.factor(weight, product(self.a[...], self.b[...]), 0)
        if dropped is not x:
            plain = dropped @ weight.astype(x.dtype)
        else:
            plain = y if bias is None else y - bias[...].astype(x.dtype)
        return y + wide.times(plain, factor - 1) + wide.times(self(dropped), factor)

    def adapt_embedding(self, rows: Array, tokens: Array, table: Array) -> Array:
        """Rows [B, T, D] of an embedding `table` with the adapter's own."""
        real = table[: self.a.shape[1]]  # without padding
        return self.factor(real, product(self.b[...], self.a[...]).T, 0) * (rows + self.embedding_delta(tokens))

    def head_weight(self, weight: Array) -> Array:
        """f W [V, D] with f B beside it; with dropout W, (f - 1) W and f B: [V, 2 D + r]."""
        b = self.b[...]
        factor = self.factor(weight, product(b, self.a[...]), 1)[:, None]
        if self.rate == 0:
            return jnp.concatenate([factor * weight, factor * b], 1)
        return jnp.concatenate([weight, (factor - 1) * weight, factor * b], 1)

    def head_input(self, x: Array, dropped: Array) -> Array:
        """Hidden states [..., D] as wide as `head` is."""
        return jnp.concatenate([x, *([] if self.rate == 0 else [dropped]), self.down(dropped)], -1)


def product(b: Array, a: Array) -> Array:
    """B A for a norm, as a batch of one: recomputation would keep a plain product, as it keeps activations."""
    return jax.lax.dot_general(b[None], a[None], (((2,), (1,)), ((0,), (0,))))[0]


def norms(weight: Array, axis: int) -> Array:
    """||W|| along an axis, a constant in the backward pass."""
    return jnp.linalg.norm(jax.lax.stop_gradient(weight), axis=axis)


class Prefix(nnx.Module):
    """Keys and values [P, K x C] before those of one layer, the keys in their place before rotated ones.

    The model's tokens keep their rotary positions 0, 1, ...: turning the prefix' keys back by P is the same as counting
    the tokens from P on, since scores depend on differences alone.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        m, count = config.model, config.adapter.virtual_tokens
        self.width, self.turn = m.head, None
        if m.position == "rope":
            self.turn = tuple(tuple(table[count].tolist()) for table in rotary_tables(m, count + 1))
        self.k, self.v = (nnx.Param(jnp.empty((*stack, *row.shape), dtype)) for row in target.tensors)

    def __call__(self, k: Array, v: Array) -> tuple[Array, Array]:
        """k and v [B, S, K, C] with the prefix before them: [B, P + S, K, C]."""
        return self._before(self.turned(), k), self._before(self.v[...].reshape(-1, *v.shape[2:]), v)

    def turned(self) -> Array:
        """The keys [P, K, C], rotated back by P positions where positions are rotary."""
        keys = self.k[...].reshape(len(self.k[...]), -1, self.width)
        if self.turn is None:
            return keys
        cos, sin = (jnp.array(part, keys.dtype) for part in self.turn)
        first, second = jnp.split(keys, 2, -1)
        return jnp.concatenate([first * cos + second * sin, second * cos - first * sin], -1)

    def _before(self, own: Array, x: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(own, (len(x), *own.shape)).astype(x.dtype), x], 1)


class Bottleneck(nnx.Module):
    """y + up act(down y) of a sublayer's output y [..., D]. Layers that are no targets have zeros for both."""

    down: nnx.Param
    up: nnx.Param
    down_bias: nnx.Param | None
    up_bias: nnx.Param | None

    def __init__(self, config: RunConfig, target: Target, rows: int, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.tap = f"blocks.#.{target.module.rpartition('.')[2]}.adapter"
        self.activation = config.adapter.bottleneck_activation
        self.down_bias, self.up_bias = nnx.data(None), nnx.data(None)
        for row in target.tensors:
            shape = row.shape[::-1] if row.transposed else row.shape
            setattr(self, row.name.rpartition(".")[2], nnx.Param(jnp.empty((*stack, *shape), dtype)))

    def __call__(self, y: Array) -> Array:
        """y [..., D] -> [..., D]."""
        hidden = self.activate(self.linear(y, self.down, self.down_bias))
        return y + tap(self.tap, self.linear(hidden, self.up, self.up_bias))

    def activate(self, x: Array) -> Array:
        """The activation between down and up."""
        if self.activation == "gelu":
            return jax.nn.gelu(x, approximate=True)
        return {"relu": jax.nn.relu, "silu": jax.nn.silu}[self.activation](x)

    def linear(self, x: Array, weight: nnx.Param, bias: nnx.Param | None) -> Array:
        """x W + bias in the dtype of x."""
        y = wide.product(x, weight[...])
        return y if bias is None else wide.plus(y, bias[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _low_rank(x: Array, a: Array, b: Array, scale: float) -> Array:
    """scale x (x A) B of x [..., in], A [in, r], B [r, out], whose gradients turn what has r columns, in A's dtype.

    JAX's own turn x and the upstream gradient: a fifth of the time of a LoRA's update on a CPU.
    """
    return x @ a.astype(x.dtype) * scale @ b.astype(x.dtype)


def _low_rank_forward(x: Array, a: Array, b: Array, scale: float) -> tuple[Array, tuple[Array, ...]]:
    low = x @ a.astype(x.dtype) * scale
    return low @ b.astype(x.dtype), (x, a, b, low)


def _low_rank_backward(scale: float, saved: tuple[Array, ...], upstream: Array) -> tuple[Array, Array, Array]:
    x, a, b, low = saved
    d_low = upstream @ b.astype(x.dtype).T * scale
    d_a = wide.over_tokens(d_low, x, a.dtype).T
    return d_low @ a.astype(x.dtype).T, d_a, wide.over_tokens(low, upstream, b.dtype)


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)
KINDS: dict[str, type[LowRank | Prefix | Bottleneck]] = {
    "lora": LowRank,
    "dora": Dora,
    "prefix": Prefix,
    "bottleneck": Bottleneck,
}
"""By `adapter.kind`."""


def attach(config: RunConfig, model: Any) -> None:
    """Put an adapter, its tensors still empty, at every target of `config.adapter`."""
    dtype = model.embed.token.dtype
    for target in {target.tensors[0].jax_path: target for target in adapter_targets(config)}.values():
        rows = len(model.head.weight[...]) if target.module == "head" else target.b.shape[0]
        stack = () if target.row.layer is None else (config.model.layers,)
        module = _at(model, target.tensors[0].jax_path.rsplit(".", 2)[0])
        setattr(module, target.slot, nnx.data(KINDS[config.adapter.kind](config, target, rows, stack, dtype)))


def detach(model: Any) -> None:
    """Take out all adapters."""
    for _, module in nnx.iter_modules(model):
        for slot in ("adapter", "prefix"):
            if getattr(module, slot, None) is not None:
                setattr(module, slot, nnx.data(None))


def partition(config: RunConfig, model: Any) -> tuple[Any, Any]:
    """A model's state as (what trains, what doesn't), the latter None without adapters: gradients are of the first."""
    # Torch marks its parameters; here what trains is a tree of its own, and `combine` puts both together.
    if config.adapter.kind == "none":
        return model, None
    paths = {row.jax_path for row in trainable_parameters(config)}
    flat = dict(nnx.to_flat_state(model))
    trained = {path: leaf for path, leaf in flat.items() if ".".join(map(str, path)) in paths}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return nnx.from_flat_state(trained), nnx.from_flat_state(frozen)


def combine(trained: Any, frozen: Any) -> Any:
    """The inverse of `partition`."""
    return trained if frozen is None else nnx.merge_state(trained, frozen)


class Adapters(AdapterBank):
    """Adapters by name over one model that is otherwise left alone: one at a time is at work, or merged, or none.

    All are of the model's own base. Merging and taking out again leaves rounding: 1e-16 of a weight in float64.
    """

    def __init__(self, config: RunConfig, model: Any) -> None:
        super().__init__(config)
        self.model = model
        paths = {row.jax_path: None for row in parameter_table(config.model) if row.name.endswith(".bias")}
        self.biases = {path: jnp.copy(_at(model, path)[...]) for path in paths}

    def _take_off(self) -> None:
        detach(self.model)

    def _clear(self) -> None:
        detach(self.model)
        for path, value in self.biases.items():
            _at(self.model, path)[...] = value

    def _put(self, config: RunConfig, tensors: Mapping[str, np.ndarray]) -> None:
        attach(config, self.model)
        for path, value in _arrays(config, self.model, trainable_parameters(config), tensors).items():
            _at(self.model, path)[...] = value

    def _add(self, sign: int) -> None:
        assert self.active is not None
        config, _ = self.kept[self.active]
        deltas = self._deltas(self._weight)
        paths = {row.jax_path for row in all_parameters(config) if row.name in deltas}
        rows = {row.name: row for row in all_parameters(config) if row.jax_path in paths}

        def whole(name: str) -> np.ndarray:
            weight = self._weight(rows[name])
            return (weight + sign * deltas[name]).astype(weight.dtype) if name in deltas else weight

        # summed in float64 as in torch, whose parameters hold one row each: here those of other layers lie beside it
        for path, value in _arrays(config, self.model, rows.values(), LazyTensors(rows, whole)).items():
            _at(self.model, path)[...] = value

    def _weight(self, row: Parameter) -> np.ndarray:
        return from_jax_tree([row], {row.jax_path: np.asarray(_at(self.model, row.jax_path)[...])})[row.name]


def _arrays(config: RunConfig, model: Any, rows: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, Array]:
    """Canonical tensors of `rows` as the model holds them, by path; zeros for layers without a row."""
    paths: dict[str, Parameter] = {row.jax_path: row for row in rows}
    forms = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=model.embed.token[...].sharding)
        for path, leaf in ((path, _at(model, path)[...]) for path in paths)
    }
    return placed(rows, forms, tensors, config.execution.vocab_multiple)


def _at(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model

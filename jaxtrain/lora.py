"""Low-rank adapters beside a model's matrices: attached, frozen around, switched, merged and taken out again.

`thaw` has no twin: a torch model holds what trains and what doesn't together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from coretrain.adapter_bank import AdapterBank
from coretrain.adapters import Target, adapter_targets, added, trained_table, whole_table
from coretrain.config import RunConfig
from coretrain.parameters import Parameter, parameter_table
from jaxtrain.tensors import placed


class LowRank(nnx.Module):
    """scale x B A x of one matrix: A [in, r], B [r, out] in blocks, cast from their master dtype to that of x.

    `rate` and `part` are of the dropout on x, which the matrix' own module draws. Beside embeddings and head A and B
    lie as in torch. Layers that are no targets have zeros for both, which get gradients of zero.
    """

    def __init__(self, config: RunConfig, target: Target, rows: int, stack: tuple[int, ...], dtype: jnp.dtype) -> None:
        self.scale, self.rate, self.part = config.adapter.scale, config.adapter.dropout, target.part
        a, b = target.a.shape, (rows, config.adapter.rank)
        if target.row.transposed:
            a, b = a[::-1], b[::-1]
        self.a = nnx.Param(jnp.empty((*stack, *a), dtype))
        self.b = nnx.Param(jnp.empty((*stack, *b), dtype))

    def __call__(self, x: Array) -> Array:
        """x [..., in] -> [..., out]."""
        return x @ self.a[...].astype(x.dtype) * self.scale @ self.b[...].astype(x.dtype)

    def down(self, x: Array) -> Array:
        """scale x A x, of the head: x [..., in] -> [..., r]."""
        return x @ self.a[...].astype(x.dtype).T * self.scale

    def look_up(self, tokens: Array) -> Array:
        """What is added to rows `tokens` [B, T] of an embedding: [B, T, D]."""
        return self.a[...].T[tokens] * self.scale @ self.b[...].T


def attach(config: RunConfig, model: Any) -> None:
    """Put an adapter, its tensors still empty, beside every target of `config.adapter`."""
    dtype = model.embed.token.dtype
    for target in {target.row.jax_path: target for target in adapter_targets(config)}.values():
        rows = len(model.head.weight[...]) if target.module == "head" else target.b.shape[0]
        stack = () if target.row.layer is None else (config.model.layers,)
        module = _at(model, target.row.jax_path.rpartition(".")[0])
        module.adapter = nnx.data(LowRank(config, target, rows, stack, dtype))


def detach(model: Any) -> None:
    """Take out all adapters."""
    for _, module in nnx.iter_modules(model):
        if getattr(module, "adapter", None) is not None:
            module.adapter = nnx.data(None)


def freeze(config: RunConfig, model: Any) -> tuple[Any, Any]:
    """A model's state as (what trains, what doesn't), the latter None without adapters: gradients are of the first."""
    # Torch marks its parameters; here what trains is a tree of its own, and `thaw` puts both together.
    if config.adapter.kind == "none":
        return model, None
    paths = {row.jax_path for row in trained_table(config)}
    flat = dict(nnx.to_flat_state(model))
    trained = {path: leaf for path, leaf in flat.items() if ".".join(path) in paths}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return nnx.from_flat_state(trained), nnx.from_flat_state(frozen)


def thaw(trained: Any, frozen: Any) -> Any:
    """The inverse of `freeze`."""
    return trained if frozen is None else nnx.merge_state(trained, frozen)


class Adapters(AdapterBank):
    """Adapters by name over one model that is otherwise left alone: one at a time is at work, or merged, or none.

    All are of the model's own base. Merging and taking out again leaves rounding: 1e-16 of a weight in float64.
    """

    def __init__(self, config: RunConfig, model: Any) -> None:
        super().__init__(config.adapter.quantize)
        self.model = model
        self.base = {row.jax_path: row for row in parameter_table(config.model)}
        self.biases = {path: jnp.copy(_at(model, path)[...]) for path in self.base if path.endswith(".bias")}

    def _fits(self, target: Target) -> bool:
        row = self.base.get(target.row.jax_path)
        return row is not None and row.shape == target.row.shape and (row.layer or 0) >= (target.row.layer or 0)

    def _take_off(self) -> None:
        detach(self.model)

    def _clear(self) -> None:
        detach(self.model)
        for path, value in self.biases.items():
            _at(self.model, path)[...] = value

    def _put(self, config: RunConfig, tensors: Mapping[str, np.ndarray]) -> None:
        attach(config, self.model)
        for path, value in _arrays(config, self.model, trained_table(config), tensors).items():
            _at(self.model, path)[...] = value

    def _add(self, sign: int) -> None:
        assert self.active is not None
        config, tensors = self.kept[self.active]
        deltas = {name: sign * delta for name, delta in added(config, tensors).items()}
        rows = [row for row in whole_table(config) if row.name in deltas]
        for path, value in _arrays(config, self.model, rows, deltas).items():
            _at(self.model, path)[...] += value


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

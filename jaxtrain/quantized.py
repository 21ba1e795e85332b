"""Weights in 4 and 8 bits in JAX: held as bytes, made whole where they are used (twin: torchtrain/quantized.py)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from coretrain.config.run import RunConfig
from coretrain.contract.quantization import (
    BLOCK,
    NF4,
    SCALES,
    Quantized,
    dynamic_map,
    forms,
    quantize,
    quantized_parameters,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "scales", "steps", "offset"),
    meta_fields=("kind", "shape"),
)
@dataclass(frozen=True)
class Packed:
    """One weight's arrays on a device, as `coretrain.contract.quantization.Quantized` has them; a pytree."""

    kind: str
    shape: tuple[int, ...]
    values: Array
    scales: Array
    steps: Array | None = None
    offset: Array | None = None


def packed(weight: Quantized, device: jax.Device | None = None) -> Packed:
    """A quantized weight on a device."""
    arrays = {name: jax.device_put(array, device) for name, array in weight.arrays.items()}
    return Packed(weight.kind, weight.shape, **arrays)


def dequantize(weight: Packed, dtype: jnp.dtype | None = None) -> Array:
    """The weight [out, in]: bit for bit as the contract has it, then rounded to `dtype` (default float32)."""
    if weight.kind == "int8":
        numbers = weight.values.astype(jnp.float32)
    else:
        codes = jnp.stack([weight.values >> 4, weight.values & 15], -1).reshape(-1)
        numbers = _levels(codes, weight.kind)
    blocks = numbers.reshape(-1, BLOCK[weight.kind]) * _largest(weight)[:, None]
    return blocks.reshape(weight.shape).astype(dtype or jnp.float32)


def _levels(codes: Array, kind: str) -> Array:
    if kind == "int4":
        return codes.astype(jnp.float32) - 8
    return jnp.asarray(NF4)[codes]


def _largest(weight: Packed) -> Array:
    """The largest magnitude of each block (nf4), or its step."""
    if weight.steps is None or weight.offset is None:
        return weight.scales
    levels = jnp.asarray(dynamic_map())[weight.scales]
    steps = jnp.repeat(weight.steps, SCALES, total_repeat_length=weight.steps.size * SCALES)[: levels.size]
    # Rounded by itself: of a product and a sum XLA makes one operation, and another number, but not across a clip.
    largest = jnp.finfo(jnp.float32).max
    return jnp.clip(levels * steps, -largest, largest) + weight.offset


class QuantizedWeight(nnx.Module):
    """A frozen weight [out, in] of each layer in bytes, in the place of a linear layer's own; it has no gradient."""

    def __init__(self, kind: str, shape: tuple[int, ...], stack: tuple[int, ...]) -> None:
        self.kind, self.shape, self.names = kind, shape, tuple(forms(kind, shape[0] * shape[1]))
        for name, (form, dtype) in forms(kind, shape[0] * shape[1]).items():
            setattr(self, name, nnx.Variable(jnp.empty((*stack, *form), dtype)))

    @property
    def packed(self) -> Packed:
        """The weight's arrays."""
        return Packed(self.kind, self.shape, **{name: getattr(self, name)[...] for name in self.names})

    def __call__(self, x: Array) -> Array:
        """W x: x [..., in] -> [..., out], in the dtype of x."""
        return _product(x, self.packed)


def allocate(config: RunConfig, model: Any) -> None:
    """Put bytes, still empty, in the place of every weight of `quantized_parameters`."""
    for row in quantized_parameters(config):
        if row.layer == 0:  # all layers' lie in one array
            module = functools.reduce(getattr, row.jax_path.split(".")[:-1], model)
            module.kernel = nnx.data(None)
            module.held = nnx.data(QuantizedWeight(config.adapter.quantize, row.shape, (config.model.layers,)))


def quantize_into(
    config: RunConfig, tensors: Mapping[str, np.ndarray], templates: Mapping[str, Any]
) -> dict[str, Array]:
    """The bytes of a base's whole `tensors`, by their paths in the model, where `templates` has them.

    Quantized on the host, one at a time.
    """
    kind, rows = config.adapter.quantize, quantized_parameters(config)
    found: dict[str, Array] = {}
    for path, size in {row.jax_path: row.size for row in rows}.items():
        stacked = {n: np.empty((config.model.layers, *form), dtype) for n, (form, dtype) in forms(kind, size).items()}
        for row in (row for row in rows if row.jax_path == path):
            for name, array in quantize(np.asarray(tensors[row.name]), kind, row.name).arrays.items():
                stacked[name][row.layer] = array
        stem = path.removesuffix("kernel") + "held"
        for name, array in stacked.items():
            place = templates[f"{stem}.{name}"].sharding
            found[f"{stem}.{name}"] = jax.make_array_from_callback(array.shape, place, array.__getitem__)
    return found


@jax.custom_vjp
def _product(x: Array, weight: Packed) -> Array:
    """x W^T. Between forward and backward only bytes are kept: the weight is made anew from them."""
    return x @ dequantize(_only_with(weight, x), x.dtype).T


def _forward(x: Array, weight: Packed) -> tuple[Array, Packed]:
    return _product(x, weight), weight


def _backward(weight: Packed, upstream: Array) -> tuple[Array, None]:
    return upstream @ dequantize(_only_with(weight, upstream), upstream.dtype), None


_product.defvjp(_forward, _backward)


def _only_with(weight: Packed, x: Array) -> Packed:
    """`weight` as something that the compiler can't know before x."""
    # It would find both dequantizations of a weight equal, make one, and keep its result for the backward pass; or
    # make it once for all micro-batches. An optimization barrier doesn't stop XLA on a CPU.
    first = x.reshape(-1)[0]
    never = jnp.isnan(first) & jnp.isinf(first)  # which no number is
    return dataclasses.replace(weight, values=weight.values ^ never.astype(weight.values.dtype))

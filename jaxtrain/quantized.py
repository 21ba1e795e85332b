"""Weights in 4 and 8 bits in JAX: held as bytes, made whole where they are used (twin: torchtrain/quantized.py)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from coretrain.quantized import BLOCK, NF4, SCALES, Quantized, dynamic_map


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("values", "scales", "steps", "offset"),
    meta_fields=("kind", "shape"),
)
@dataclass(frozen=True)
class Packed:
    """One weight's arrays on a device, as `coretrain.quantized.Quantized` has them; a pytree."""

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
    """The weight [out, in]: bit for bit `coretrain.quantized.dequantize`, then rounded to `dtype` (default float32)."""
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

"""Layers in stages: each stage's devices hold a share of them, and micro-batches pass from one to the next.

This file has no twin: torch's stages are processes that send each other activations. Here one program works on all
stages at once, as a vectorised stage over a buffer that moves on by one place a tick (GSPMD, Xu et al. 2021, 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxtrain.parallel.sharding import Sharding

Stage = Callable[[Any, Array, Array, Array], Array]


def pipelined(sharding: Sharding, stage: Stage, stacked: Any, x: Array, rows: Array, layers: int) -> Array:
    """x [A, B, T, D], A micro-batches, through all layers.

    `stage(weights, x, rows, layers)` takes x [B, T, D] through some layers: their weights [l, ...], x's row numbers
    [B], the layers' numbers [l]. `stacked` are the weights of all, [L, ...]; `rows` [A, B]. It takes A + S - 1 ticks,
    in S - 1 of which a stage has nothing to do: what it makes of zeros then is dropped.
    """
    S, A = sharding.size("stage"), len(x)

    def in_stages(leaf: Array) -> Array:
        return leaf.reshape(S, len(leaf) // S, *leaf.shape[1:])

    weights, numbers = jax.tree.map(in_stages, stacked), in_stages(jnp.arange(layers))
    at = jnp.arange(S)
    over_stages = jax.vmap(stage, spmd_axis_name="stage")

    def place(buffer: Array) -> Array:
        return jax.lax.with_sharding_constraint(buffer, sharding.named("layers", "batch", "time", None))

    def tick(buffer: Array, t: Array) -> tuple[Array, Array]:
        entering = jax.lax.dynamic_index_in_dim(x, jnp.minimum(t, A - 1), keepdims=True)
        buffer = place(jnp.where((at == 0)[:, None, None, None], entering, buffer))
        out = place(over_stages(weights, buffer, rows[jnp.clip(t - at, 0, A - 1)], numbers))
        return place(jnp.roll(out, 1, 0)), out[S - 1]

    start = place(jnp.zeros((S, *x.shape[1:]), x.dtype))
    return jax.lax.scan(tick, start, jnp.arange(A + S - 1))[1][S - 1 :]

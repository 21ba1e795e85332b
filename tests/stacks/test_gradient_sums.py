"""Sums over tokens, and so over devices, that make a gradient: in float32, or as parallel.gradient_sum says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import AbstractMesh

from coretrain.config.run import RunConfig
from coretrain.processes.supported import check_combination
from jaxtrain.adapters import combine, partition
from jaxtrain.layers import Linear
from jaxtrain.model import GPT
from jaxtrain.parallel.sharding import AXES, Sharding
from tests.support.refusal import refused

B, T = 6, 10
"""No other size of the model is 6: where one is lost, there was a sum over rows."""
ADAPTERS = {
    "none": {},
    "lora": {"adapter__targets": "blocks.*.weight,embed.token,head.weight"},
    "dora": {"adapter__targets": "blocks.*.weight,embed.token,head.weight"},
    "prefix": {},
    "bottleneck": {},
}


def summed(jaxpr: Jaxpr) -> list[str]:
    """The dtypes of all sums over rows, but inside of shard_map, where a device sums its own."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "reduce_sum"):
            rows = any(B in x.aval.shape for x in equation.invars)
            out = equation.outvars[0].aval
            if rows and B not in out.shape and out.size > 1:
                found.append(str(out.dtype))
        inner = [p for value in equation.params.values() for p in (value if isinstance(value, tuple) else (value,))]
        for part in inner if name != "shard_map" else ():
            if isinstance(part, (Jaxpr, ClosedJaxpr)):
                found += summed(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
    return found


def sums_of(config: RunConfig) -> list[str]:
    sharding = Sharding(AbstractMesh((1, 2, 1, 1, 1, 1, 1), AXES), config)
    graph, state = nnx.split(nnx.eval_shape(lambda: GPT(config, "plain", sharding, scan=True)))
    params, frozen = partition(config, state)

    def loss(params, frozen, tokens):
        return nnx.merge(graph, combine(params, frozen))(tokens).astype(jnp.float32).sum()

    tokens = jax.ShapeDtypeStruct((B, T), np.int32)
    return summed(jax.make_jaxpr(jax.grad(loss))(params, frozen, tokens).jaxpr)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_every_sum_over_rows_is_in_float32(kind, small_config):
    config = small_config(
        precision__compute="bfloat16", model__bias="true", model__tied="false", adapter__kind=kind, **ADAPTERS[kind]
    )
    found = sums_of(config)
    assert len(found) > 4
    assert set(found) == {"float32"}


def test_sums_in_the_compute_dtype_where_they_are_asked_for(small_config):
    config = small_config(precision__compute="bfloat16", parallel__gradient_sum="compute", model__bias="false")
    assert "bfloat16" in sums_of(config)
    with refused("processes/combination-unsupported", "parallel.gradient_sum"):
        check_combination(config, "torch")


def test_what_nearly_cancels_is_not_lost():
    """1 + 2^-9 - 1: in bfloat16, whose steps at 1 are 2^-7, nothing would be left of it."""
    layer = Linear(3, 2, True, (), jnp.float32)
    graph, state = nnx.split(layer)
    state = jax.tree.map(jnp.zeros_like, state)
    x = jnp.ones((3, 3), jnp.bfloat16)
    upstream = jnp.array([1, 2**-9, -1], jnp.bfloat16)[:, None] * jnp.ones((3, 2), jnp.bfloat16)
    gradients = jax.grad(lambda s: (nnx.merge(graph, s)(x) * upstream).astype(jnp.float32).sum())(state)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 2.0**-9)

"""Products and sums of activations with a parameter whose gradient is summed in the parameter's own dtype.

JAX's own rules give a gradient of x @ w.astype(x.dtype) that is rounded to the dtype of x first, and the sum over
devices is then made of rounded numbers, in that dtype: in bfloat16 what nearly cancels is lost. Here the sum over
tokens is float32 (the master dtype) from the matmul on, on one device and over many.

This file has no twin: in torch each process has a gradient of its own, and those are summed in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

Sums = Callable[[Array, Array, jnp.dtype], Array]
"""(x [..., a], y [..., b], dtype) -> the sum over all tokens of their products [a, b], as `over_tokens` gives it."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x: Float[Array, "... into"], kernel: Float[Array, "into out"], sums: Sums | None = None
) -> Float[Array, "... out"]:
    """x @ kernel in the dtype of x; the kernel's gradient comes out of its matmul in the kernel's dtype.

    A mesh may have `sums` of its own for that gradient.
    """
    return x @ kernel.astype(x.dtype)


def _product_forward(x: Array, kernel: Array, sums: Sums | None) -> tuple[Array, tuple[Array, Array]]:
    return x @ kernel.astype(x.dtype), (x, kernel)  # not its cast: what was gathered is gathered again


def _product_backward(sums: Sums | None, saved: tuple[Array, Array], upstream: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return upstream @ kernel.astype(x.dtype).T, (sums or over_tokens)(x, upstream, kernel.dtype)


product.defvjp(_product_forward, _product_backward)


def over_tokens(
    x: Float[Array, "... a"], y: Float[Array, "... b"], dtype: jnp.dtype, apart: tuple[int, ...] = ()
) -> Float[Array, "*n a b"]:
    """Sum of x's rows times y's over all tokens: a matrix' gradient, in `dtype`. Axes `apart` stay, in front."""
    rows = tuple(axis for axis in range(x.ndim - 1) if axis not in apart)
    over = ((rows, rows), (apart, apart))

    def widened(x: Array, y: Array) -> Array:
        return jax.lax.dot_general(x.astype(dtype), y.astype(dtype), over)

    def summed(x: Array, y: Array) -> Array:
        return jax.lax.dot_general(x, y, over, preferred_element_type=dtype)

    if x.dtype == dtype:
        return summed(x, y)
    # XLA's CPU compiler has no product of bfloat16 numbers that sums in float32; the numbers are the same
    return jax.lax.platform_dependent(x, y, cpu=widened, default=summed)


def plus(x: Float[Array, "... out"], bias: Float[Array, " out"]) -> Float[Array, "... out"]:
    """x + bias in the dtype of x. Cast after it is spread out, so that the gradient is summed before it is cast."""
    return x + jnp.broadcast_to(bias, x.shape).astype(x.dtype)


@jax.custom_vjp
def times(x: Float[Array, "... out"], factor: Float[Array, " out"]) -> Float[Array, "... out"]:
    """x times factor in the dtype of x."""
    return x * factor.astype(x.dtype)


def _times_forward(x: Array, factor: Array) -> tuple[Array, tuple[Array, Array]]:
    return x * factor.astype(x.dtype), (x, factor)


def _times_backward(saved: tuple[Array, Array], upstream: Array) -> tuple[Array, Array]:
    x, factor = saved
    each = (upstream * x).astype(factor.dtype)
    return upstream * factor.astype(x.dtype), each.sum(tuple(range(x.ndim - 1)))


times.defvjp(_times_forward, _times_backward)

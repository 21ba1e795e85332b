"""Bugs below float64: another dtype than the policy's, rounding where none may be, x64 that is on in tests only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxtrain.wide
from parity.bugs.attention import change_root
from parity.bugs.loss import each_gradient
from parity.bugs.optimizer import change_moments, change_step, configured
from parity.gates import (
    ALONE_32,
    DECAY_32,
    DTYPES,
    X64,
    YARDSTICK,
)
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import TORCH, Side


def _own(s: Side, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as if it stood in the stack's file as `name`: the audit goes by where an operation comes from."""
    function.__code__ = function.__code__.replace(co_qualname=name, co_filename=s.model.__file__)
    return function


@mutant("dtypes", DTYPES, LLAMA)
def norm_in_the_compute_dtype(patch: Patch, s: Side) -> None:
    """No upcast before the mean of squares: a bfloat16 run hides it in its noise."""
    root = torch.rsqrt if s is TORCH else jax.lax.rsqrt

    def forward(self: Any, x: Any) -> Any:
        return x * root((x * x).mean(-1, keepdims=True) + self.eps) * s.cast(s.gain(self), "bfloat16")

    patch.setattr(s.layers.Norm, s.call, _own(s, f"Norm.{s.call}", forward))


@mutant("equivalent", None, LLAMA, probe="dtypes")
def norm_written_out_in_float32(patch: Patch, s: Side) -> None:
    """The same norm from other operations: that a function isn't the stack's own is no fault."""
    root = torch.rsqrt if s is TORCH else jax.lax.rsqrt

    def forward(self: Any, x: Any) -> Any:
        wide = s.cast(x, "float32")
        return s.cast(wide * root((wide * wide).mean(-1, keepdims=True) + self.eps) * s.gain(self), "bfloat16")

    patch.setattr(s.layers.Norm, s.call, _own(s, f"Norm.{s.call}", forward))


@mutant("dtypes", DTYPES)
def softmax_in_the_compute_dtype(patch: Patch, s: Side) -> None:
    """Scores exponentiated and summed in bfloat16."""

    def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
        scores = s.xp.einsum("bthc,bshc->bhts", q, k) * q.shape[-1] ** -0.5
        scores = s.xp.where(mask[:, None], scores, -s.xp.inf)
        weights = s.xp.exp(scores - s.stop(s.xp.amax(scores, -1, keepdims=True)))
        return s.xp.einsum("bhts,bshc->bthc", weights / weights.sum(-1, keepdims=True), v)

    patch.setattr(s.attention, "masked_attention", _own(s, "masked_attention", masked))


@mutant("dtypes", DTYPES)
def norm_not_cast_back(patch: Patch, s: Side) -> None:
    """What leaves the norm stays float32, and so does every matmul after it: right, and twice as slow."""
    wrap(patch, s.layers.Norm, s.call, lambda f: lambda self, x: f(self, s.cast(x, "float32")))
    # the stream itself stays bfloat16, or JAX's scan refuses it
    wrap(patch, s.layers.Block, s.call, lambda f: lambda *given: s.cast(f(*given), "bfloat16"))


@mutant("dtypes", DTYPES, LLAMA)
def rotary_in_the_compute_dtype(patch: Patch, s: Side) -> None:
    """Tables cast to bfloat16: angles of late positions lose their last bits."""
    wrap(patch, s.layers, "rotate", lambda f: lambda x, *tables: f(x, *(s.cast(t, "bfloat16") for t in tables)))


@mutant("dtypes", DTYPES, sides=("jax",))
def matrix_gradients_rounded_before_devices_sum_them(patch: Patch, s: Side) -> None:
    """JAX's own rule for x @ w.astype(x.dtype): the sum over devices is made of rounded numbers, in bfloat16."""

    def rounded(f: Any) -> Any:
        return lambda x, y, dtype: f(x, y, x.dtype).astype(dtype)

    wrap(patch, jaxtrain.wide, "over_tokens", rounded)


@mutant("dtypes", DTYPES)
def gradient_norm_in_the_compute_dtype(patch: Patch, s: Side) -> None:
    """The sum of squares in bfloat16: beyond 256 equal terms it stands still."""

    def norm(gradients: Any) -> Any:
        squares = [s.cast(g, "bfloat16") ** 2 for g in gradients]
        return s.xp.sqrt(sum(x.sum() for x in squares))

    patch.setattr(s.step, "global_norm", _own(s, "global_norm", norm))


@mutant("optimizer", ALONE_32)
def moments_in_bfloat16_of_a_float32_run(patch: Patch, s: Side) -> None:
    """Moments in the dtype of the activations, where weights are float32."""
    change_moments(patch, s, lambda moment: s.rounded(moment, "bfloat16"))


@mutant("optimizer", ALONE_32)
def gradients_through_bfloat16(patch: Patch, s: Side) -> None:
    """What replicas send each other is cut to bfloat16."""

    def apply(f: Any) -> Any:
        def narrow(self: Any, *args: Any) -> None:
            each_gradient(s, self, lambda g: s.rounded(g, "bfloat16"))
            f(self, *args)

        return narrow

    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("optimizer", DECAY_32)
def decay_factor_in_bfloat16(patch: Patch, s: Side) -> None:
    """1 - lr x decay rounded to bfloat16 is 1: there is no decay at all."""

    def change(row: Any, old: Any, new: Any, lr: Any) -> Any:
        return new - (1 - s.rounded(s.xp.asarray(1 - lr * 0.1), "bfloat16")) * old if row.decay else new

    configured(patch, s, weight_decay=0.0)
    change_step(patch, s, change)


@mutant("optimizer", DECAY_32)
def decay_a_thousandth_high_in_float32(patch: Patch, s: Side) -> None:
    """weight_decay x 1.001, which float32's other roundings would hide."""
    configured(patch, s, weight_decay=0.1 * 1.001)


@mutant("optimizer", YARDSTICK, LLAMA)
def no_master_weights(patch: Patch, s: Side) -> None:
    """Parameters in bfloat16: what an update adds is mostly rounded away."""
    change_step(patch, s, lambda row, old, new, lr: s.rounded(new, "bfloat16"))


@mutant("optimizer", YARDSTICK, LLAMA)
def weights_rounded_towards_zero(patch: Patch, s: Side) -> None:
    """Truncation for rounding: two units in the last place an update are nothing, but always the same way."""

    def change(row: Any, old: Any, new: Any, lr: Any) -> Any:
        zero = s.xp.zeros_like(new)
        return s.xp.nextafter(s.xp.nextafter(new, zero), zero)

    change_step(patch, s, change)


@mutant("x64", X64, sides=("jax",))
def attention_scale_as_a_numpy_scalar(patch: Patch, s: Side) -> None:
    """np.sqrt for math.sqrt: with x64 on, and only then, all that it touches becomes float64."""
    change_root(patch, s, np.sqrt)


@mutant("x64", X64, LLAMA, sides=("jax",))
def rotary_tables_without_a_dtype(patch: Patch, s: Side) -> None:
    """jnp.asarray of a float64 table: float64 in tests, float32 in runs."""

    def rotary(self: Any, at: Any) -> Any:
        return tuple(jnp.asarray(table)[at] for table in s.model.rotary_tables(self.config, self.config.context))

    patch.setattr(s.model.GPT, "_rotary", rotary)


@mutant("x64", X64, sides=("jax",))
def norm_summed_in_float64(patch: Patch, s: Side) -> None:
    """A float64 that is asked for, and had in tests only."""
    wrap(patch, s.step, "global_norm", lambda f: lambda gradients: f([g.astype("float64") for g in gradients]))


@mutant("x64", X64, sides=("jax",))
def adams_epsilon_as_a_numpy_scalar(patch: Patch, s: Side) -> None:
    """The gradients are the same, and the update is not."""
    configured(patch, s, eps=np.float64(1e-8))


@mutant("x64", X64, LLAMA, sides=("jax",))
def decay_as_a_numpy_scalar(patch: Patch, s: Side) -> None:
    """Weights that become float64 in tests only."""
    configured(patch, s, weight_decay=np.float64(0.1))

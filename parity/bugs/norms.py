"""Bugs in activations and norms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from coretrain.contract.taps import tap
from parity.gates import GRADIENTS, LOGITS, NORMS_32
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import TORCH, Side

_GELU = math.sqrt(2 / math.pi)


def _gelu(patch: Patch, s: Side, constant: float = _GELU, cubic: float = 0.044715) -> None:
    def gelu(x: Any, approximate: Any = None) -> Any:
        return 0.5 * x * (1 + s.xp.tanh(constant * (x + cubic * x**3)))

    patch.setattr(s.nn, "gelu", gelu)


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_constant_of_ten_digits(patch: Patch, s: Side) -> None:
    """sqrt(2 / pi) typed in with ten digits."""
    _gelu(patch, s, 0.7978845608)


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_constant_wrong_in_its_7th_digit(patch: Patch, s: Side) -> None:
    """A digit mistyped: 0.0447151 for 0.044715."""
    _gelu(patch, s, cubic=0.0447151)


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_constant_in_float32(patch: Patch, s: Side) -> None:
    """A constant made in float32 inside a float64 path."""
    _gelu(patch, s, float(np.float32(_GELU)))


@mutant("model", LOGITS, tap="blocks.0.activation")
def gelu_erf(patch: Patch, s: Side) -> None:
    """The exact GELU for its tanh form: torch's default against JAX's."""
    exact = "none" if s is TORCH else False
    wrap(patch, s.nn, "gelu", lambda f: lambda x, approximate: f(x, approximate=exact))


@mutant("model", LOGITS, tap="blocks.1.activation")
def gelu_erf_in_the_last_block_only(patch: Patch, s: Side) -> None:
    """One block built from another config."""
    last: list[Any] = [False]

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any, rotary: Any, dropout: Any, *more: Any) -> Any:
            last[0] = self.site == 3 if s is TORCH else more[0] == 1
            return f(self, x, rotary, dropout, *more)

        return call

    def gelu(f: Any) -> Any:
        exact = "none" if s is TORCH else False

        def both(x: Any, approximate: Any) -> Any:
            return s.xp.where(s.xp.asarray(last[0]), f(x, approximate=exact), f(x, approximate=approximate))

        return both

    wrap(patch, s.layers.Block, s.call, forward)
    wrap(patch, s.nn, "gelu", gelu)


@mutant("model", LOGITS, LLAMA, "blocks.0.activation")
def silu_with_a_slope(patch: Patch, s: Side) -> None:
    """x sigmoid(1.702 x), GELU's approximation, for SiLU."""
    wrap(patch, s.nn, "silu", lambda f: lambda x: f(1.702 * x) / 1.702)


@mutant("model", LOGITS, LLAMA, "blocks.0.activation")
def gate_and_up_exchanged(patch: Patch, s: Side) -> None:
    """SiLU on the wrong half of SwiGLU, as when a joint matrix is split the other way."""

    def forward(self: Any, x: Any, *masks: Any) -> Any:
        gate, up = tap("blocks.#.gate", self.gate(x, *masks)), tap("blocks.#.up", self.up(x, *masks))
        return tap("blocks.#.down", self.down(tap("blocks.#.activation", gate * s.nn.silu(up)), *masks))

    patch.setattr(s.layers.MLP, s.call, forward)


def _norm(patch: Patch, s: Side, compute: Callable[[Any, Any, Any], Any]) -> None:
    """`compute(norm, x, normalize)`, where normalize(difference, mean square) is the usual end of it."""

    def forward(self: Any, x: Any) -> Any:
        def normalize(difference: Any, square: Any) -> Any:
            y = difference / s.xp.sqrt(square + self.eps) * s.gain(self)
            return y if self.bias is None else y + s.parameter(self.bias)

        return compute(self, x, normalize)

    patch.setattr(s.layers.Norm, s.call, forward)


def _mean(x: Any) -> Any:
    return x.mean(-1, keepdims=True)


@mutant("model", LOGITS, tap="blocks.0.norm1")
def norm_epsilon(patch: Patch, s: Side) -> None:
    """epsilon 1e-6 for 1e-5: HF's defaults differ from model to model."""

    def with_another(f: Any) -> Any:
        def forward(self: Any, x: Any) -> Any:
            set_fields(self, eps=1e-6)
            return f(self, x)

        return forward

    wrap(patch, s.layers.Norm, s.call, with_another)


def set_fields(module: Any, **values: Any) -> None:
    """Attributes of a module that may be frozen."""
    for name, value in values.items():
        object.__setattr__(module, name, value)


@mutant("model", LOGITS, tap="blocks.1.norm2")
def norm_epsilon_in_one_layer_only(patch: Patch, s: Side) -> None:
    """One norm of one block built with a default epsilon."""

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any, rotary: Any, dropout: Any, *more: Any) -> Any:
            own = self.norm1.eps
            set_fields(
                self.norm2, eps=(1e-6 if self.site == 3 else own) if s is TORCH else jnp.where(more[0] == 1, 1e-6, own)
            )
            return f(self, x, rotary, dropout, *more)

        return call

    wrap(patch, s.layers.Block, s.call, forward)


@mutant("model", LOGITS, tap="norm")
def final_norm_epsilon(patch: Patch, s: Side) -> None:
    """The final norm built apart from the others, with another epsilon."""

    def forward(f: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            set_fields(self.norm, eps=1e-6)
            return f(self, *args)

        return call

    wrap(patch, s.model.GPT, s.call, forward)


@mutant("model", LOGITS, LLAMA, "blocks.0.norm1")
def rms_epsilon_outside_the_root(patch: Patch, s: Side) -> None:
    """x / (rms + eps) for x / sqrt(ms + eps)."""

    def compute(norm: Any, x: Any, _: Any) -> Any:
        return x / (s.xp.sqrt(_mean(x * x)) + norm.eps) * s.gain(norm)

    _norm(patch, s, compute)


@mutant("model", LOGITS, LLAMA, "blocks.0.norm1")
def rmsnorm_subtracts_the_mean(patch: Patch, s: Side) -> None:
    """LayerNorm's centring left in RMSNorm."""
    wrap(patch, s.layers.Norm, s.call, lambda f: lambda self, x: f(self, x - _mean(x)))


@mutant("model", LOGITS, tap="blocks.0.norm1")
def variance_over_n_minus_1(patch: Patch, s: Side) -> None:
    """torch.std's default, Bessel's correction, in LayerNorm."""

    def compute(norm: Any, x: Any, normalize: Any) -> Any:
        centred = x - _mean(x)
        return normalize(centred, _mean(centred**2) * x.shape[-1] / (x.shape[-1] - 1))

    _norm(patch, s, compute)


@mutant("model", LOGITS, LLAMA, "blocks.0.norm1")
def norm_in_bfloat16(patch: Patch, s: Side) -> None:
    """Autocast reaches into the norm."""
    wrap(patch, s.layers.Norm, s.call, lambda f: lambda self, x: f(self, s.rounded(x, "bfloat16")))


@mutant("model", LOGITS, tap="blocks.0.norm1")
def norm_in_float32(patch: Patch, s: Side) -> None:
    """A hard-coded float32 upcast, which in float64 is a downcast."""
    wrap(patch, s.layers.Norm, s.call, lambda f: lambda self, x: s.rounded(f(self, x), "float32"))


@mutant("model", NORMS_32)
def fast_variance(patch: Patch, s: Side) -> None:
    """E[x^2] - E[x]^2: only float32 inputs whose mean is far above their spread show it."""
    _norm(patch, s, lambda norm, x, normalize: normalize(x - _mean(x), _mean(x * x) - _mean(x) ** 2))


@mutant("model", GRADIENTS, tap="cotangent of blocks.1.residual2")
def norm_statistics_without_gradient(patch: Patch, s: Side) -> None:
    """Mean and variance detached: the forward pass is right."""

    def compute(norm: Any, x: Any, normalize: Any) -> Any:
        mean = s.stop(_mean(x))
        return normalize(x - mean, s.stop(_mean((x - mean) ** 2)))

    _norm(patch, s, compute)

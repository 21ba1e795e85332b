"""Bugs that the budgets of low precision see; what they can't see is the audit's (dtypes.py)."""

from __future__ import annotations

from typing import Any

from parity.bugs.attention import change_attention
from parity.bugs.loss import each_gradient
from parity.gates import EVEN, budget
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import Side


def dtype_of(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


@mutant("rounding", budget("cpu", "float32", "gradient"), LLAMA, probe="budget of float32")
def norm_in_bfloat16_of_a_float32_run(patch: Patch, s: Side) -> None:
    """Autocast that nobody asked for reaches into the norm."""
    wrap(patch, s.layers.Norm, s.call, lambda f: lambda self, x: f(self, s.rounded(x, "bfloat16")))


@mutant("rounding", budget("cpu", "bfloat16", "logits"), LLAMA, probe="budget of bfloat16")
def linear_layers_in_float8(patch: Patch, s: Side) -> None:
    """Inputs of the linear layers cut to e4m3's three bits, where bfloat16 was asked for."""
    wrap(patch, s.layers.Linear, s.call, lambda f: lambda self, x, *more: f(self, s.rounded(x, "float8_e4m3fn"), *more))


@mutant("rounding", budget("cpu", "bfloat16", "gradient"), LLAMA, probe="budget of bfloat16")
def keys_without_gradient_in_bfloat16(patch: Patch, s: Side) -> None:
    """A detach that was meant for a cache: the logits are right."""
    change_attention(patch, s, lambda q, k, v: (q, s.stop(k) + 0 * k, v))


@mutant("rounding", budget("cpu", "float16", "logits"), LLAMA, probe="budget of float16")
def bfloat16_for_float16(patch: Patch, s: Side) -> None:
    """autocast's default on a CPU."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, tensors: Any = None) -> None:
            if config.precision.compute == "float16":
                config = config.changed(precision__compute="bfloat16")
            f(self, config, tensors)

        return build

    wrap(patch, s.trainer.Trainer, "__init__", init)


@mutant("rounding", budget("cpu", "float16", "gradient"), LLAMA, state="tiny head", probe="budget of float16")
def loss_scale_lost(patch: Patch, s: Side) -> None:
    """The scale comes into the gradients after the backward pass: what is below 6e-8 is zero by then."""

    def late(f: Any) -> Any:
        def gradients(self: Any, batch: Any, update: int, scale: float) -> tuple[float, float]:
            seen = f(self, batch, update, 1.0)
            each_gradient(s, self, lambda g: g * scale)
            return seen

        return gradients

    wrap(patch, s.trainer.Trainer, "gradients", late)


@mutant("rounding", EVEN, LLAMA, probe="budget of float16")
def norm_in_bfloat16_of_a_float16_run(patch: Patch, s: Side) -> None:
    """Under the cap of float16, and three times as far off as the other stack."""
    wrap(patch, s.layers.Norm, s.call, lambda f: lambda self, x: f(self, s.rounded(x, "bfloat16")))


@mutant("rounding", EVEN, probe="budget of float16")
def residual_stream_through_bfloat16(patch: Patch, s: Side) -> None:
    """What leaves a block of a float16 run is cut to bfloat16: under the cap, and three times as far off."""
    wrap(patch, s.layers.Block, s.call, lambda f: lambda *given: s.rounded(f(*given), "bfloat16"))

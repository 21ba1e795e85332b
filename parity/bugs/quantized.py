"""Bugs in a frozen base of few bits: how bytes are read, where blocks are cut, what goes through them, what trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import coretrain.contract.quantization
import jaxtrain.quantized
import torchtrain.quantized
from parity.bugs.adapters import BESIDE, UPDATES
from parity.gates import FROZEN, GRADIENTS, LOGITS
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import TORCH, Side

NF4, INT4, INT8 = "nf4, gpt2-like", "int4, llama-like", "int8, unrolled"
QUANTIZED = {"torch": torchtrain.quantized, "jax": jaxtrain.quantized}


def _read(patch: Patch, s: Side, change: Callable[[Any], dict[str, Any]]) -> None:
    """Fields of a weight other than they are, wherever it is dequantized."""

    def wrapped(f: Any) -> Any:
        return lambda weight, *dtype: f(dataclasses.replace(weight, **change(weight)), *dtype)

    wrap(patch, QUANTIZED[s.name], "dequantize", wrapped)


@mutant("quantized", LOGITS, NF4, probe=BESIDE)
def low_half_of_a_byte_first(patch: Patch, s: Side) -> None:
    """Two numbers of a byte changed places, as GGUF has them."""
    _read(patch, s, lambda weight: {"values": weight.values << 4 | weight.values >> 4})


@mutant("quantized", LOGITS, INT4, probe=BESIDE)
def low_half_of_an_int4_byte_first(patch: Patch, s: Side) -> None:
    """The same in int4."""
    _read(patch, s, lambda weight: {"values": weight.values << 4 | weight.values >> 4})


@mutant("quantized", LOGITS, NF4, probe=BESIDE)
def scales_without_their_offset(patch: Patch, s: Side) -> None:
    """The mean that double quantization took off the scales isn't added again."""
    _read(patch, s, lambda weight: {"offset": weight.offset * 0})


@mutant("quantized", LOGITS, NF4, probe=BESIDE)
def scales_of_the_next_block(patch: Patch, s: Side) -> None:
    """Scales off by one block."""
    _read(patch, s, lambda weight: {"scales": s.xp.roll(weight.scales, 1)})


@mutant("quantized", LOGITS, INT8, probe=BESIDE)
def scales_of_the_next_block_of_int8(patch: Patch, s: Side) -> None:
    """The same in int8."""
    _read(patch, s, lambda weight: {"scales": s.xp.roll(weight.scales, 1)})


@mutant("quantized", LOGITS, INT8, probe=BESIDE)
def int8_read_without_its_sign(patch: Patch, s: Side) -> None:
    """Bytes taken as 0 to 255."""
    _read(patch, s, lambda weight: {"values": s.cast(s.cast(weight.values, "uint8"), "int16")})


@mutant("quantized", LOGITS, NF4, probe=BESIDE)
def dequantized_into_bfloat16(patch: Patch, s: Side) -> None:
    """A compute dtype of its own, as bitsandbytes' bnb_4bit_compute_dtype left at another than the run's."""
    wrap(patch, QUANTIZED[s.name], "dequantize", lambda f: lambda *given: s.rounded(f(*given), "bfloat16"))


@mutant("quantized", LOGITS, INT4, probe=BESIDE)
def blocks_cut_from_the_transpose(patch: Patch, s: Side) -> None:
    """Blocks that run down the columns: other numbers share a scale."""

    def wrapped(f: Any) -> Any:
        def quantize(weight: np.ndarray, kind: str, *name: str) -> Any:
            turned = coretrain.contract.quantization.dequantize(f(np.ascontiguousarray(weight.T), kind, *name))
            return f(np.ascontiguousarray(turned.T), kind, *name)

        return quantize

    wrap(patch, QUANTIZED[s.name], "quantize", wrapped)


def _held(patch: Patch, s: Side, change: Callable[[Any, Any, Any], Any]) -> None:
    """`change(as it is, held, x)` in the place of the product with a quantized weight."""

    def wrapped(f: Any) -> Any:
        return lambda self, x: change(f, self, x)

    wrap(patch, QUANTIZED[s.name].QuantizedWeight, s.call, wrapped)


@mutant("quantized", GRADIENTS, NF4, probe=BESIDE)
def no_gradient_through_quantized_weights(patch: Patch, s: Side) -> None:
    """A kernel that only goes forward: below it gradients come through residuals and adapters alone."""
    _held(patch, s, lambda f, self, x: f(self, s.stop(x)))


@mutant("quantized", GRADIENTS, NF4, probe=BESIDE)
def gradient_through_rounded_weights(patch: Patch, s: Side) -> None:
    """Backward through the weight in bfloat16, forward through it as it is."""

    def change(f: Any, self: Any, x: Any) -> Any:
        rounded = s.rounded(QUANTIZED[s.name].dequantize(self.packed, x.dtype), "bfloat16")
        through = x @ rounded.T
        return s.stop(f(self, x)) + through - s.stop(through)

    _held(patch, s, change)


@mutant("quantized", FROZEN, INT4, probe=UPDATES)
def scales_are_trained(patch: Patch, s: Side) -> None:
    """Scales are floating-point numbers: an optimizer that takes all of those decays them."""

    def decayed(f: Any) -> Any:
        def apply(self: Any, lr: float, *given: Any) -> None:
            f(self, lr, *given)
            factor = 1 - lr * self.config.optimizer.weight_decay
            if s is TORCH:
                for name, scales in self.model.named_buffers():
                    if name.endswith("held.scales"):
                        scales.mul_(factor)
            else:
                leaves = jax.tree_util.tree_leaves_with_path(self.frozen)
                mine = {id(leaf) for path, leaf in leaves if "scales" in jax.tree_util.keystr(path)}
                self.frozen = jax.tree.map(lambda leaf: leaf * factor if id(leaf) in mine else leaf, self.frozen)

        return apply

    wrap(patch, s.trainer.Trainer, "apply", decayed)

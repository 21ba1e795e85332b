"""Few bits: the same bytes as bitsandbytes, and in both stacks the same numbers out of them, compiled or not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

import jaxtrain.quantized
import torchtrain.quantized
from coretrain.contract.quantization import (
    BLOCK,
    KINDS,
    NF4,
    SCALES,
    dequantize,
    dynamic_map,
    quantize,
)
from tests.support.bitsandbytes_oracle import bitsandbytes_nf4
from tests.support.refusal import refused

SHAPES = [(64, 64), (192, 640), (576, 192), (30, 64)]


def weight(shape: tuple[int, ...], scale: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    made = rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
    made[0, : shape[1] // 2] = 0  # a block without a scale, where it is as long
    made[1, 3] = 40 * scale  # an outlier
    return made


def cases(kind: str) -> list[np.ndarray]:
    return [weight(shape) for shape in SHAPES if shape[0] * shape[1] % BLOCK[kind] == 0]


@pytest.mark.parametrize("kind", KINDS)
def test_both_stacks_make_the_same_numbers_of_it(kind):
    """float32 bit for bit, also out of a compiled function that goes on computing; bfloat16 is float32 rounded."""
    for given in cases(kind):
        quantized = quantize(given, kind)
        wanted = dequantize(quantized)
        ours, theirs = torchtrain.quantized.packed(quantized), jaxtrain.quantized.packed(quantized)
        eager, compiled = jaxtrain.quantized.dequantize(theirs), jax.jit(jaxtrain.quantized.dequantize)(theirs)
        for found in (torchtrain.quantized.dequantize(ours).numpy(), np.asarray(eager), np.asarray(compiled)):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, wanted)
        rounded = torchtrain.quantized.dequantize(ours, torch.bfloat16).float().numpy()
        np.testing.assert_array_equal(
            rounded, np.asarray(jaxtrain.quantized.dequantize(theirs, jax.numpy.bfloat16), np.float32)
        )
        np.testing.assert_array_equal(rounded, torch.from_numpy(wanted).bfloat16().float().numpy())


ROUNDING = [("nf4", 4.13, 0.19), ("int8", 8.25, 0.5 / 127), ("int4", 4.25, 0.5 / 7)]


@pytest.mark.parametrize(("kind", "bits", "worst"), ROUNDING)
def test_bits_and_errors(kind, bits, worst):
    """Half the largest gap between two levels, of the block's largest magnitude; nf4's is 0.152, its scale 4% off."""
    given = weight((576, 512), 1.0)
    quantized = quantize(given, kind)
    assert quantized.bits == pytest.approx(bits, abs=5e-3)
    blocks, found = given.reshape(-1, BLOCK[kind]), dequantize(quantized).reshape(-1, BLOCK[kind])
    largest = np.abs(blocks).max(1, keepdims=True)
    assert (np.abs(blocks - found) <= (worst + 1e-6) * largest + 1e-30).all()
    assert np.abs(blocks - found).max() > 0.5 * worst * np.median(largest), "nothing was rounded"


def test_nf4_is_bitsandbytes():
    """Values and steps from its own call; scales from its reference, which its CPU kernel only nears."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    np.testing.assert_array_equal(functional.create_dynamic_map().numpy(), dynamic_map())
    np.testing.assert_array_equal(functional.get_4bit_type("nf4", device="cpu").numpy(), NF4)
    for given in cases("nf4"):
        quantized = quantize(given, "nf4")
        found, plain = functional.quantize_4bit(torch.from_numpy(given), blocksize=64, quant_type="nf4")
        np.testing.assert_array_equal(found.numpy().reshape(-1), quantized.arrays["values"])
        offset = quantized.arrays["offset"]
        assert abs(float(plain.absmax.mean()) - float(offset)) <= np.spacing(offset)
        rest = (plain.absmax - torch.from_numpy(offset)).double()  # in float64 it takes the reference
        codes, steps = torch.ops.bitsandbytes.quantize_blockwise(rest, functional.create_dynamic_map(), SCALES)
        np.testing.assert_array_equal(codes.numpy(), quantized.arrays["scales"])
        np.testing.assert_array_equal(steps.numpy(), quantized.arrays["steps"])
        np.testing.assert_array_equal(bitsandbytes_nf4(given, offset), dequantize(quantized))


def test_what_cannot_be_quantized():
    with refused("contract/quantize-partial-block", "head.weight", "2,145", "nf4", "64"):
        quantize(np.zeros((33, 65), np.float32), "nf4", "head.weight")
    bad = weight((64, 64))
    bad[3, 3] = np.inf
    for kind in KINDS:
        with refused("contract/quantize-not-finite"):
            quantize(bad, kind)

"""Few bits: bytes as of bitsandbytes and by hand; in both stacks the same numbers out of them, compiled or not."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from scipy.stats import norm

import jaxtrain.quantized
import torchtrain.quantized
from coretrain.config.adapter import AdapterConfig
from coretrain.config.load import load_config
from coretrain.config.model import ModelConfig
from coretrain.contract.quantization import (
    BLOCK,
    KINDS,
    NF4,
    SCALES,
    dequantize,
    dynamic_map,
    forms,
    held_bytes,
    quantize,
    quantized_parameters,
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


def test_the_levels_of_nf4_are_quantiles_of_a_normal_distribution():
    """Dettmers et al., appendix E: 8 even steps of probability up to 1/2 and 7 from there on, the outermost as 1."""
    end = 0.9677083
    below, above = (norm.ppf(np.linspace(end, 0.5, count)[:-1]) for count in (8, 9))
    levels = np.sort(np.concatenate([-below, [0], above])) / above[0]
    # the published ones were made in float32, 1.1e-7 off; another end or another count of steps is 1e-3 off
    np.testing.assert_allclose(NF4, levels, atol=3e-7)


def test_dynamic_map_by_hand():
    """A sign, an exponent of ten, and 2^e even parts of 0.1 to 1, each in its middle: 0.55; 0.325 and 0.775; ..."""
    parts = {e: [0.1 + 0.9 * (i + 0.5) / 2**e for i in range(2**e)] for e in range(7)}
    levels = [sign * 10.0 ** (e - 6) * part for e, found in parts.items() for part in found for sign in (1, -1)]
    np.testing.assert_allclose(dynamic_map(), sorted([0.0, 1.0, *levels]), rtol=3e-7)


@pytest.mark.parametrize(("kind", "most"), [("int8", 127), ("int4", 7)])
def test_whole_numbers_by_hand(kind, most):
    """Two blocks of 128: the largest magnitude is `most` steps of 1/4, and halves go to the even neighbour."""
    numbers = np.zeros((2, 128), np.float32)
    numbers[:, :6] = np.array([most, -most, 2.5, -2.5, 3.5, 0.49], np.float32) / 4
    numbers[1] *= 16
    quantized = quantize(numbers, kind)
    assert quantized.arrays["scales"].tolist() == [0.25, 4.0]
    whole = [most, -most, 2, -2, 4, 0]
    if kind == "int8":
        assert quantized.arrays["values"].reshape(2, 128)[:, :6].tolist() == [whole, whole]
    else:  # 8 added, the first of two in the high half: 15 1, 10 6, 12 8
        assert quantized.arrays["values"].reshape(2, 64)[:, :3].tolist() == [[0xF1, 0xA6, 0xC8]] * 2
    expected = np.zeros((2, 128))
    expected[:, :6] = np.array(whole) / 4
    expected[1] *= 16
    assert dequantize(quantized).tolist() == expected.tolist()


def test_nf4_by_hand():
    """One block, whose largest magnitude is its own mean: the levels times 2, and a number in the middle goes down."""
    numbers = np.full((1, 64), 0.0, np.float32)
    numbers[0, :5] = 2 * np.array([1.0, -1.0, NF4[9], (NF4[9] + NF4[10]) / np.float32(2), 0.034], np.float32)
    quantized = quantize(numbers, "nf4")
    arrays = quantized.arrays
    assert arrays["values"][:3].tolist() == [0xF0, 0x99, 0x77], "0.034 lies nearer to 0 than to 0.0796"
    assert (float(arrays["offset"]), arrays["steps"].tolist()) == (2.0, [0.0])
    assert dynamic_map()[arrays["scales"]].tolist() == [0.0]
    assert dequantize(quantized)[0, :3].tolist() == [2.0, -2.0, float(2 * NF4[9])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 255, 256, 257])
def test_what_is_planned_is_what_is_made(kind, blocks):
    size = blocks * BLOCK[kind]
    arrays = quantize(np.ones((1, size), np.float32), kind).arrays
    assert forms(kind, size) == {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    assert held_bytes(kind, size) == sum(array.nbytes for array in arrays.values())
    by_hand = {"nf4": size // 2 + blocks + 4 * -(-blocks // 256) + 4, "int8": size + 4 * blocks}
    assert held_bytes(kind, size) == by_hand.get(kind, size // 2 + 4 * blocks)


def test_the_blocks_matrices_alone_are_quantized():
    """Not the embeddings, nor an untied head, nor positions: two dimensions each."""
    more = {"layers": 1, "width": 64, "heads": 2, "context": 64, "vocab": 128, "tied": False}
    config = load_config().changed(model=ModelConfig(**more), adapter=AdapterConfig(kind="lora", quantize="nf4"))
    names = {f"blocks.0.attention.{part}.weight" for part in ("q", "k", "v", "out")}
    names |= {f"blocks.0.mlp.{part}.weight" for part in ("up", "down")}
    assert {row.name for row in quantized_parameters(config)} == names
    assert quantized_parameters(config.changed(adapter__quantize="none")) == ()

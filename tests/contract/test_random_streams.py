"""The streams once more in plain Python: BLAKE2b for their keys, numpy's own Philox, floats one by one, masks bit by
bit. What stands in the contract as arrays is held against it, and first values as literals."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from coretrain.config.model import ModelConfig
from coretrain.contract.dropout import dropout_keys, uses_dropout
from coretrain.contract.parameters import Parameter, initial_value
from coretrain.contract.randomness import dropout_key, dropout_mask, dropout_threshold, normal_rows, uniform_rows


def key_of(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest(), "little")


def uniforms_of(seed: int, name: str, block: int, count: int) -> list[float]:
    words = np.random.Philox(key=key_of(seed, f"weights/{name}"), counter=block << 192).random_raw(count)
    return [((int(word) >> 11) + 0.5) / 2**53 for word in words]


def normals_of(seed: int, name: str, block: int, count: int) -> list[float]:
    """Box-Muller: the first half of a block are cosines, the second the sines of the same pairs."""
    pairs = -(-count // 2)
    draws = uniforms_of(seed, name, block, 2 * pairs)
    polar = [(math.sqrt(-2 * math.log(u)), 2 * math.pi * v) for u, v in zip(draws[:pairs], draws[pairs:], strict=True)]
    return ([r * math.cos(a) for r, a in polar] + [r * math.sin(a) for r, a in polar])[:count]


def lowbias32(x: int) -> int:
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def kept(key: int, row: int, token: int, feature: int, length: int, rate: float) -> bool:
    place = lowbias32((row * length + token & 0xFFFFFFFF) ^ key)
    return lowbias32(place + feature * 0x9E3779B9 & 0xFFFFFFFF) >> 8 >= round(rate * 2**24)


@pytest.mark.parametrize("shape", [(3,), (7, 5), (600, 3), (256, 1), (257, 2, 3)])
def test_weights_are_those_of_plain_python(shape):
    """Block after block of 256 rows. One rounding of two libraries' logarithm and cosine: an ULP of float64, which
    moves a float32 in one of 1e8; a row of another block is off by all."""
    width = math.prod(shape[1:])
    firsts = range(0, shape[0], 256)
    blocks = [min(256, shape[0] - first) * width for first in firsts]
    wanted = [value for block, count in enumerate(blocks) for value in normals_of(9, "a.b", block, count)]
    np.testing.assert_allclose(normal_rows(9, "a.b", shape, 0.5).reshape(-1), 0.5 * np.array(wanted), rtol=2e-7)
    if len(shape) > 1:
        wanted = [value for block, count in enumerate(blocks) for value in uniforms_of(9, "a.b", block, count)]
        found = uniform_rows(9, "a.b", shape, 0.25).reshape(-1)
        np.testing.assert_allclose(found, 0.5 * np.array(wanted) - 0.25, rtol=2e-7)


def test_no_rows_are_no_rows():
    assert normal_rows(9, "a", (5, 2), 1.0, 0, 0).shape == (0, 2)
    assert normal_rows(9, "a", (5, 2), 1.0, 5, 5).shape == (0, 2)


def test_first_values():
    """Changed only on purpose: every run and every adapter would start from other weights."""
    found = normal_rows(1337, "embed.token", (600, 24), 0.02)
    np.testing.assert_allclose(found[0, :3], [0.0077445041, -0.0126361838, -0.00162920798], rtol=1e-6)
    np.testing.assert_allclose(found[300, :2], [0.0270963293, 0.0186982676], rtol=1e-6)
    found = uniform_rows(1337, "blocks.0.attention.q.adapter.a", (300, 4), 0.5)
    np.testing.assert_allclose(found[0, :3], [0.121941827, 0.408536792, -0.288698614], rtol=1e-6)
    np.testing.assert_allclose(found[299, :3], [0.125244036, 0.327008188, 0.498328507], rtol=1e-6)


@pytest.mark.parametrize("init", ["uniform", "normal"])
def test_a_start_has_the_deviation_that_its_row_says(init):
    """A uniform one of deviation s ends at sqrt(3) s. A deviation's standard error, of n draws, is s / sqrt(2n)."""
    row = Parameter("a", (300, 50), init, 0.02, False, ("rank", "width"), "a", None, False)
    value = initial_value(row, 1).astype(np.float64)
    assert value.std() == pytest.approx(0.02, rel=5 / math.sqrt(2 * value.size))
    assert abs(value.mean()) < 5 * 0.02 / math.sqrt(value.size)
    end = math.sqrt(3) * 0.02
    assert (0.999 * end < np.abs(value).max() <= end) == (init == "uniform")


def test_keys_of_an_updates_sites_by_hand():
    """Site 0 is the embedding, block i has 1 + 2i and 2 + 2i: the low 32 bits of "SEED:dropout/UPDATE/SITE"."""
    found = dropout_keys(ModelConfig(layers=6, vocab=10), 1337, 41)
    assert found.dtype == np.uint32
    assert found.tolist() == [key_of(1337, f"dropout/41/{site}") & 0xFFFFFFFF for site in range(13)]
    assert found[:5].tolist() == [4254960601, 2962438885, 3671475951, 3576937008, 4144149973]
    for update in (0, 999, 1000, 1041, 10**6):
        assert dropout_key(0, update, 17) == key_of(0, f"dropout/{update}/17") & 0xFFFFFFFF


@pytest.mark.parametrize("length", [1, 2, 40, 256, 300])
def test_a_mask_bit_by_bit(length):
    """At any length, far rows included, whose first token's number goes beyond 32 bits and starts anew."""
    rows, width, rate, key = np.array([0, 3, 8, 2**31 + 5]), 6, 0.25, 0xDEADBEEF
    found = dropout_mask(key, rows, length, width, rate)
    tokens = sorted({0, length // 2, length - 1})
    wanted = [[[kept(key, int(r), t, d, length, rate) for d in range(width)] for t in tokens] for r in rows]
    assert found[:, tokens].tolist() == wanted


def test_the_bits_of_a_mask():
    found = dropout_mask(dropout_key(1337, 41, 5), np.array([3, 8]), 2, 32, 0.25)
    assert ["".join("01"[int(bit)] for bit in token) for row in found for token in row] == [
        "10110011011110110011111001111111",
        "01111111011111100011011111111101",
        "11011101011110110111111111111110",
        "10111011001111011101111011011001",
    ]


def test_thresholds_by_hand():
    """2^24 x rate, rounded: 1677721.6 and 1.4 and 0.6."""
    rates = {0.0: 0, 0.1: 1677722, 0.5: 2**23, 1.4 / 2**24: 1, 0.6 / 2**24: 1}
    assert {rate: dropout_threshold(rate) for rate in rates} == rates


def test_either_rate_is_dropout():
    def uses(**rates: float) -> bool:
        return uses_dropout(ModelConfig(layers=1, **rates))

    assert not uses()
    assert uses(residual_dropout=0.1)
    assert uses(embedding_dropout=0.1)

"""Rotary frequencies by hand, and each way to scale them against transformers' own function."""

from __future__ import annotations

import math

import numpy as np
import pytest
from transformers import LlamaConfig

from coretrain.config.model import ModelConfig, RopeScaling
from coretrain.contract.rotary import rotary_divisors, rotary_frequencies, rotary_tables
from tests.support.transformers_oracle import float64_frequencies

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def model(scaling: dict | None = None, head: int = 8, theta: float = 10000.0) -> ModelConfig:
    """Of a context that no original context equals."""
    made = None if scaling is None else RopeScaling(**scaling)
    return ModelConfig(
        layers=1, heads=2, width=2 * head, context=48, position="rope", rope_theta=theta, rope_scaling=made
    )


def test_frequencies_and_tables_by_hand():
    """10000^(-2i/8): each pair turns by a tenth of the one before; position 0 doesn't turn at all."""
    np.testing.assert_allclose(rotary_frequencies(model()), [1, 0.1, 0.01, 0.001], rtol=1e-15)
    cosines, sines = rotary_tables(model(), 3)
    assert (cosines.shape, sines.shape, cosines.dtype) == ((3, 4), (3, 4), np.float64)
    assert (cosines[0].tolist(), sines[0].tolist()) == ([1.0] * 4, [0.0] * 4)
    np.testing.assert_allclose(cosines[2], [math.cos(2), math.cos(0.2), math.cos(0.02), math.cos(0.002)], rtol=1e-15)
    np.testing.assert_allclose(sines[2], [math.sin(2), math.sin(0.2), math.sin(0.02), math.sin(0.002)], rtol=1e-15)
    halved = rotary_tables(model({"type": "linear", "factor": 2.0}), 3)
    np.testing.assert_allclose(halved[1][2], [math.sin(1), math.sin(0.1), math.sin(0.01), math.sin(0.001)], rtol=1e-15)


def test_divisors_by_hand():
    assert rotary_divisors(model()).tolist() == [1.0] * 4
    assert rotary_divisors(model({"type": "linear", "factor": 2.5})).tolist() == [2.5] * 4
    # turns in 8192 positions: 8192 / 2 pi = 1303.8, 130.4, 13.04 and 1.3038; above 4 nothing, below 1 the whole factor,
    # between them the share (1.3038 - 1) / (4 - 1) = 0.10127 is kept: 1 / (0.10127 + 0.89873 / 8) = 4.6814
    kept = (8192e-3 / (2 * math.pi) - 1) / 3
    by_hand = [1, 1, 1, 1 / (kept + (1 - kept) / 8)]
    assert by_hand[3] == pytest.approx(4.6814, abs=1e-4)
    scaling = {"type": "llama3", "original_context": 8192, **LLAMA3}
    np.testing.assert_allclose(rotary_divisors(model(scaling)), by_hand, rtol=1e-14)
    # 819.2 positions: 130.4, 13.04, 1.3038 and 0.13 turns
    shorter = {**scaling, "original_context": 820}
    assert rotary_divisors(model(shorter))[3] == 8
    assert 1 < rotary_divisors(model(shorter))[2] < 8


@pytest.mark.parametrize("head", [8, 64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 4.0},
        {"type": "llama3", "original_context": 8192, **LLAMA3},
        {"type": "llama3", "original_context": 300, "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 5.0},
        {"type": "llama3", "original_context": 40, "factor": 1.5, "low_freq_factor": 0.25, "high_freq_factor": 1.0},
    ],
    ids=["linear", "llama3", "narrow", "short"],
)
@pytest.mark.parametrize("theta", [10000.0, 5e5])
def test_transformers_has_the_same_frequencies(scaling, head, theta):
    m = model(scaling, head, theta)
    names = {"type": "rope_type", "original_context": "original_max_position_embeddings"}
    rope = {names.get(name, name): value for name, value in scaling.items()} | {"rope_theta": theta}
    config = LlamaConfig(
        hidden_size=m.width, num_attention_heads=m.heads, head_dim=head, max_position_embeddings=m.context,
        rope_parameters=rope,
    )  # fmt: skip
    ours = rotary_frequencies(m) / rotary_divisors(m)
    # float64 on both sides, in another order of roundings; a factor one ULP of float32 off would be 1e-7
    np.testing.assert_allclose(ours, float64_frequencies(config).numpy(), rtol=1e-13)
    cosines, _ = rotary_tables(m, 9)
    np.testing.assert_allclose(cosines[8], np.cos(8 * ours), rtol=1e-13, atol=1e-15)

"""The gradient noise scale against a model whose gradients are drawn from a known distribution."""

import math

import numpy as np
import pytest

from coretrain.diagnosis import noise as noise_room
from coretrain.diagnosis.noise import advice, noise_scale

TRUE = np.array([0.3, -0.4, 0.0, 1.2])  # |G|² = 1.69
SPREADS = np.array([2.0, 0.5, 1.0, 3.0])  # S = 14.25
SCALE = float((SPREADS**2).sum() / (TRUE**2).sum())
ROWS, PIECE = 16, 4


def norms(batches, seed, rows=ROWS, piece=PIECE):
    """Gradient norms of whole batches and of their pieces, rows drawn about the true gradient."""
    drawn = np.random.default_rng(seed).normal(TRUE, SPREADS, (batches, rows, len(TRUE)))
    large = np.linalg.norm(drawn.mean(1), axis=-1)
    small = np.linalg.norm(drawn.reshape(batches, rows // piece, piece, -1).mean(2), axis=-1)
    return large.tolist(), small.tolist()


def test_many_batches_give_the_scale():
    """Of 4,000 batches the estimate lies within 3% of S/|G|² = 8.4; without the correction for the piece's own noise it
    would be 2.9, with the two sizes exchanged negative."""
    found = noise_scale(*norms(4000, 0), ROWS, PIECE)
    assert abs(found.rows / SCALE - 1) < 0.05
    assert abs(found.signal / 1.69 - 1) < 0.05
    assert abs(found.spread / 14.25 - 1) < 0.03


def test_the_interval_covers_the_scale_as_often_as_it_says():
    """90% of 200 trials of 32 batches each, less what the bootstrap of a ratio falls short by."""
    found = [noise_scale(*norms(32, seed), ROWS, PIECE) for seed in range(200)]
    covered = sum(one.low <= SCALE <= one.high for one in found) / len(found)
    assert 0.80 <= covered <= 0.97, covered


def test_no_signal_is_told_as_no_signal():
    found = noise_scale([1.0], [[2.0, 2.0, 2.0, 2.0]], ROWS, PIECE)  # E|g|² falls as 1/B: nothing but noise
    assert math.isinf(found.rows)
    assert "isn't told from noise" in advice(found, ROWS)


@pytest.mark.parametrize(("size", "word"), [(1, "larger"), (8, "fits"), (500, "smaller")])
def test_advice_goes_the_right_way(size, word):
    assert word in advice(noise_scale(*norms(400, 1), ROWS, PIECE), size)


@pytest.mark.parametrize("wrong", [([], [], ROWS, PIECE), ([1.0], [[1.0]], ROWS, ROWS), ([1.0], [], ROWS, PIECE)])
def test_one_size_gives_no_scale(wrong):
    with pytest.raises(ValueError, match="pieces"):
        noise_scale(*wrong)


def test_planted_norms_that_are_not_squared_are_seen(monkeypatch):
    monkeypatch.setattr(noise_room.np, "square", lambda values: values)
    assert abs(noise_scale(*norms(4000, 0), ROWS, PIECE).rows / SCALE - 1) > 0.05

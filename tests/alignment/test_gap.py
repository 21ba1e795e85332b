"""The gap between a sampler's log-probabilities and the trainer's, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coretrain.alignment.gap import gap_figures


def test_figures_by_hand():
    """Two tokens of a row whose ratios are 4 and 1/4 of the sampler's, one that is equal, and some that are masked."""
    old = np.log([[0.8, 0.1, 0.5], [math.nan, 0.3, 0.3]])
    sampled = np.log([[0.2, 0.4, 0.5], [0.3, math.nan, 0.3]])
    mask = np.array([[True, True, True], [False, False, True]])
    found = gap_figures(old, sampled, mask)
    k3 = [4 - 1 - math.log(4), 1 / 4 - 1 + math.log(4), 0.0, 0.0]
    # sums of four rounded terms: 4e-16; a sign of k3 the other way is off by 2.8
    assert found == pytest.approx(
        {"gap_mean": math.log(4) / 2, "gap_max": math.log(4), "gap_k3": sum(k3) / 4, "gap_outside": 0.5}, rel=1e-14
    )


def test_k3_is_of_the_sampler_s_tokens():
    """Summed over all tokens by the sampler's probabilities it is KL(sampler, trainer): the direction by which tokens
    were drawn."""
    sampled, old = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    each = [
        gap_figures(np.log([[o]]), np.log([[p]]), np.ones((1, 1), bool))["gap_k3"]
        for o, p in zip(old, sampled, strict=True)
    ]
    # four roundings; the other direction is 0.37 for 0.38
    assert np.dot(sampled, each) == pytest.approx(float(np.dot(sampled, np.log(sampled / old))), rel=1e-14)


@pytest.mark.parametrize(("ratio", "far"), [(0.49, 1.0), (0.51, 0.0), (1.99, 0.0), (2.01, 1.0), (1.0, 0.0)])
def test_what_is_far(ratio, far):
    found = gap_figures(np.log([[0.1 * ratio]]), np.log([[0.1]]), np.ones((1, 1), bool))
    assert found["gap_outside"] == far


def test_no_tokens_and_no_numbers():
    nothing = gap_figures(np.full((2, 2), math.nan), np.zeros((2, 2)), np.zeros((2, 2), bool))
    assert nothing == {"gap_mean": 0.0, "gap_max": 0.0, "gap_k3": 0.0, "gap_outside": 0.0}
    lost = gap_figures(np.array([[math.nan, -1.0]]), np.array([[-1.0, -1.0]]), np.ones((1, 2), bool))
    assert lost["gap_outside"] == 0.5
    assert all(math.isnan(lost[name]) for name in ("gap_mean", "gap_max", "gap_k3"))


def test_order_and_padding_change_no_bit():
    rng = np.random.default_rng(0)
    old, sampled, mask = rng.normal(size=(6, 9)), rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.7
    found, order = gap_figures(old, sampled, mask), rng.permutation(6)
    wide = [np.pad(array[order], ((0, 2), (3, 0))) for array in (old, sampled, mask)]
    assert gap_figures(*wide) == found

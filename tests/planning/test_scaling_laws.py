"""How many tokens a model wants."""

from __future__ import annotations

import pytest

from coretrain.planning.scaling_laws import advice, cheapest_equal, loss, optimal_tokens


def test_the_law_is_about_twenty_tokens_a_parameter_at_chinchillas_size():
    assert optimal_tokens(70e9) / 70e9 == pytest.approx(20, rel=0.15)
    smaller, longer = cheapest_equal(7e9, optimal_tokens(7e9))
    assert (smaller, longer) == pytest.approx((7e9, optimal_tokens(7e9)), rel=1e-3)


def test_the_optimum_is_one():
    n = 1e9
    d = optimal_tokens(n)
    for factor in (0.9, 1.1):  # the same FLOPs otherwise spent
        assert loss(n * factor, d / factor) > loss(n, d)


def test_serving_wants_longer_training():
    assert optimal_tokens(1e9, 1e12) > 2 * optimal_tokens(1e9)
    assert "too few" in dict(advice(10**9, 1e9, 0))["this run"]
    assert "cheapest to train" in dict(advice(10**9, optimal_tokens(1e9), 0))["this run"]

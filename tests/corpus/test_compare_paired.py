"""The paired difference of two sets of models on held-out documents, by hand and by simulation."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from twintrain.proxies.paired import Scores, difference, half_width, verdict

NAMES = {"A": "raw", "B": "clean"}


def scores(random, by, documents=60, seeds=2, between_seeds=0.0):
    """Models that need 2 bits a byte, B's `by` more; each document has a difficulty, the same for all models."""
    sizes = random.integers(200, 2000, documents).astype(float)
    hard = 2 + 0.5 * random.normal(size=documents)
    a, b = (
        sizes
        * (hard + more + between_seeds * random.normal(size=(seeds, 1)) + 0.01 * random.normal(size=(seeds, documents)))
        for more in (0.0, by)
    )
    return Scores(sizes, a, b)


def test_the_value_by_hand():
    one = Scores(np.array([10.0, 30.0]), np.array([[20.0, 30], [24, 30]]), np.array([[30.0, 30], [34, 38]]))
    found = difference([one])
    assert_allclose(found.a, [50 / 40, 54 / 40])  # all bits over all bytes, not the mean of documents' rates
    assert_allclose(found.b, [60 / 40, 72 / 40])
    assert_allclose(found.value, (10 + 18) / 2 / 40)
    # a document alone: (30 - 20 + 34 - 24) / 2 / 10 = 1, or (0 + 8) / 2 / 30
    assert_allclose(found.documents, [4 / 30, 1])


def test_each_text_counts_the_same():
    small = Scores(np.array([10.0]), np.full((2, 1), 10.0), np.full((2, 1), 20.0))
    large = Scores(np.array([1000.0]), np.full((2, 1), 1000.0), np.full((2, 1), 1000.0))
    assert_allclose(difference([small, large]).value, 0.5)
    assert difference([small, large]).documents == (0.5, 0.5)  # a single document each: nothing else can be drawn


def test_the_width_over_seeds_by_hand():
    # variances 0.5 and 2 of two seeds each: pooled 1.25; t of 2 degrees at 97.5% is 4.30265
    assert_allclose(half_width(np.array([1.0, 2.0]), np.array([1.0, 3.0])), 4.302653 * math.sqrt(2 * 1.25 / 2), 1e-6)
    # t of 4 degrees is 2.77645
    assert_allclose(half_width(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), 2.776445 * math.sqrt(2 / 3), 1e-6)


def test_both_widths_add_as_squares():
    found = difference([scores(np.random.default_rng(1), 0.05, between_seeds=0.02)])
    low, high = found.interval
    assert_allclose(found.value - low, math.hypot(found.value - found.documents[0], found.seeds))
    assert_allclose(high - found.value, math.hypot(found.documents[1] - found.value, found.seeds))


def test_pairs_are_kept_together():
    """Documents differ by 0.5 bits a byte, models of one document by 0.01: paired, 0.02 is told apart; unpaired not."""
    random = np.random.default_rng(2)
    found = difference([scores(random, 0.02)])
    assert found.documents[0] > 0.015
    assert found.documents[1] < 0.025


@pytest.mark.parametrize(("by", "better"), [(0.1, "A"), (-0.1, "B"), (0.0, "")])
def test_verdicts(by, better):
    found = difference([scores(np.random.default_rng(3), by, between_seeds=0.003)])
    assert found.better == better
    sentence = verdict(found, NAMES)
    if better == "A":
        assert sentence.startswith("A (raw) is better than B (clean)")
    elif better == "B":
        assert sentence.startswith("B (clean) is better than A (raw)")
    else:
        assert "not told apart" in sentence


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 200 comparisons with a known difference 95% should hold it: 3.1 standard errors of 0.0154 are allowed."""
    held = 0
    for seed in range(200):
        random = np.random.default_rng([5, seed])
        a, b = random.normal(size=(2, 2)) * 0.01 + [[2.0], [2.03]]
        held += abs((b - a).mean() - 0.03) < half_width(a, b)
    assert 0.90 <= held / 200 <= 0.998


def test_the_same_again():
    made = [difference([scores(np.random.default_rng(4), 0.01)]).plain() for _ in range(2)]
    assert made[0] == made[1]

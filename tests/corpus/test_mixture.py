"""Weights of a mixture, the cap on epochs, and the search over losses whose best mixture is known."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from coretrain.corpus.mixture.draw import LEAST, draw, floored
from coretrain.corpus.mixture.regression import FORMS, chosen, fit, mean_error
from coretrain.corpus.mixture.search import lowest, search
from coretrain.corpus.mixture.weights import as_config, by_hand, by_temperature, capped, epochs_of
from tests.support.refusal import refused

OPEN = np.ones(3)


def test_by_temperature():
    assert_allclose(by_temperature([900, 100]), [0.9, 0.1])
    assert_allclose(by_temperature([900, 100], 2), [0.75, 0.25])  # square roots: 30 and 10
    assert_allclose(by_temperature([900, 100], np.inf), [0.5, 0.5])
    assert_allclose(by_temperature([9, 3], 0.5), [0.9, 0.1])  # squares
    assert_allclose(by_temperature([10**15, 1], 0.01), [1, 0])  # no overflow


def test_by_hand():
    assert_allclose(by_hand("3,1", ["a", "b"]), [0.75, 0.25])
    assert_allclose(by_hand(" 1e300, 1e300", ["a", "b"]), [0.5, 0.5])


@pytest.mark.parametrize("text", ["", "3", "3,1,1", "3,x", "3,0", "3,-1", "3,nan", "3,inf", "3,", "\u0663,1", "3;1"])
def test_weights_that_are_none(text):
    with refused("corpus/weights-unreadable", "2 sources"):
        by_hand(text, ["a", "b"])


def test_a_cap_by_hand():
    # 1,000 tokens to read; the second source has 50 tokens and may be read 4 times: 200 of 1,000
    shares = capped(np.array([0.3, 0.5, 0.2]), [600, 50, 400], 1000, 4)
    assert_allclose(shares, [0.48, 0.2, 0.32])  # the others in their proportions, 3 to 2
    assert_allclose(epochs_of(shares, [600, 50, 400], 1000), [0.8, 4, 0.8])


def test_what_a_cap_takes_may_fill_another():
    # the second is cut to 0.2, which lifts the third from 0.25 to 0.32, above its own cap of 0.3
    shares = capped(np.array([0.375, 0.375, 0.25]), [600, 50, 75], 1000, 4)
    assert_allclose(shares, [0.5, 0.2, 0.3])


@pytest.mark.parametrize("seed", range(20))
def test_caps_are_those_of_one_level(seed):
    """min(cap, c x share) for one c, which another method finds: by halving."""
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 9))
    shares, tokens = random.dirichlet(np.ones(count)), random.integers(1, 1000, count)
    budget = tokens.sum() * random.uniform(0.5, 3.9)
    low, high, caps = 0.0, 1e9, 4 * tokens / budget
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if np.minimum(caps, middle * shares).sum() > 1 else (middle, high)
    assert_allclose(capped(shares, tokens, budget, 4), np.minimum(caps, low * shares), atol=1e-9)


def test_caps_that_all_are_full():
    assert_allclose(capped(np.array([0.9, 0.1]), [100, 300], 1600, 4), [0.25, 0.75])
    with refused("corpus/mixture-too-small", "400 tokens", "1,700", "4.25 times", "--epochs 4"):
        capped(np.array([0.9, 0.1]), [100, 300], 1700, 4)


def test_as_a_config():
    assert as_config(["a", "b"], np.array([2 / 3, 1 / 3])) == [
        {"source": "a", "weight": 0.666667},
        {"source": "b", "weight": 0.333333},
    ]


def test_draws_are_shares_and_differ():
    natural = np.array([0.9, 0.09, 0.01])
    drawn = np.stack([draw(natural, number, 7) for number in range(200)])
    assert_allclose(drawn.sum(1), 1, atol=1e-12)
    assert drawn.min() >= LEAST - 1e-12
    assert len({tuple(one) for one in drawn.tolist()}) == 200
    assert_allclose(draw(natural, 3, 7), drawn[3], atol=0)
    assert not np.array_equal(draw(natural, 3, 8), drawn[3])
    middle = np.sqrt(natural) / np.sqrt(natural).sum()
    assert_allclose(drawn.mean(0), middle, atol=0.06)
    assert drawn[:, 0].std() > 0.1  # not all in the middle


def test_a_floor():
    assert_allclose(floored(np.array([1.0, 0.0, 0.0])), [1 - 2 * LEAST, LEAST, LEAST])
    assert_allclose(floored(np.array([2.0, 2.0])), [0.5, 0.5])
    assert_allclose(floored(np.array([0.6, 0.4, 0.0])), [0.5988, 0.3992, LEAST])  # in their proportions


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("penalty", [1e-4, 1.0])
def test_errors_left_out_are_those_of_fitting_without(form, penalty):
    """The same ridge by its normal equations, once for each run that is left out, on columns scaled as with it."""
    random = np.random.default_rng(3)
    shares, losses = random.dirichlet(np.ones(3), 12), random.normal(size=12)
    whole = fit(shares, losses, form, penalty)
    for out in range(12):
        kept = np.arange(12) != out
        columns = (FORMS[form](shares) - whole.middle) / whole.scale
        inside = np.column_stack([np.ones(12), columns])
        ridge = penalty * 12 * np.eye(inside.shape[1])
        ridge[0, 0] = 0
        slopes = np.linalg.solve(inside[kept].T @ inside[kept] + ridge, inside[kept].T @ losses[kept])
        assert_allclose(whole.left_out[out], inside[out] @ slopes - losses[out], rtol=1e-6, atol=1e-9)


def test_the_form_is_chosen_by_what_it_says_of_others():
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(3) * 2, 40)
    line = shares @ [1.0, 2.0, 3.0]
    assert chosen(shares, line).form == "linear"
    assert chosen(shares, np.log(shares) @ [-0.1, -0.2, -0.3]).form == "logarithmic"
    assert chosen(shares, ((shares - [0.2, 0.3, 0.5]) ** 2).sum(1)).form == "quadratic"


def test_the_error_of_the_mean():
    assert mean_error(np.array([0.0, 3.0])) == 3
    assert_allclose(mean_error(np.array([0.0, 3.0, 6.0])), np.sqrt((4.5**2 + 0 + 4.5**2) / 3))


def bowl(shares, noise=0.0, best=(0.5, 0.3, 0.2)):
    """Losses with their least at a known mixture."""
    random = np.random.default_rng(11)
    return 3 + 2 * ((shares - np.array(best)) ** 2).sum(1) + noise * random.normal(size=len(shares))


def drawn(natural, count):
    return np.stack([draw(natural, number, 5) for number in range(count)])


def test_a_known_best_mixture_is_found():
    natural = np.array([0.1, 0.1, 0.8])
    shares = drawn(natural, 32)
    found = search(shares, bowl(shares, 0.01), natural, OPEN, 1)
    assert found.fit.form == "quadratic"
    assert_allclose(found.best, [0.5, 0.3, 0.2], atol=0.03)
    assert (found.low <= found.best).all()
    assert (found.best <= found.high).all()
    assert found.high.max() - found.low.min() < 0.7
    assert_allclose(found.gain, 2 * (0.16 + 0.04 + 0.36), atol=0.05)
    assert found.interval[0] < found.gain < found.interval[1]
    assert found.told_apart
    assert found.plain() == search(shares, bowl(shares, 0.01), natural, OPEN, 1).plain()


def test_a_cap_holds_in_the_search():
    natural = np.array([0.1, 0.1, 0.8])
    shares = drawn(natural, 32)
    caps = np.array([0.3, 1.0, 1.0])
    shares = np.stack([capped(one, caps, 1.0, 1.0) for one in shares])
    found = search(shares, bowl(shares), natural, caps, 1)
    assert_allclose(found.best, [0.3, 0.4, 0.3], atol=0.02)  # the least of the bowl where the first is 0.3


def test_a_cap_below_what_was_tried_holds():
    shares = drawn(np.array([0.4, 0.3, 0.3]), 20)
    model = fit(shares, bowl(shares), "quadratic", 1e-6)
    assert shares[:, 0].max() > 0.5
    best = lowest(model, shares, np.array([0.2, 0.4, 0.4]), np.array([0.25, 1.0, 1.0]))
    assert_allclose(best, [0.25, 0.425, 0.325], atol=0.02)


def test_nothing_is_looked_for_beyond_what_was_tried():
    shares = np.stack([draw(np.array([0.5, 0.5]), number, 5) for number in range(12)])
    shares = shares[(shares[:, 0] > 0.3) & (shares[:, 0] < 0.6)]
    assert len(shares) > 3
    model = fit(shares, shares @ [1.0, 2.0], "linear", 1e-6)
    assert_allclose(lowest(model, shares, shares[0], np.ones(2))[0], shares[:, 0].max())
    shares = 0.2 + 0.4 * drawn(np.array([0.4, 0.3, 0.3]), 20)
    model = fit(shares, shares @ [1.0, 1.0, 3.0], "linear", 1e-6)
    assert_allclose(lowest(model, shares, shares[0], OPEN)[2], shares[:, 2].min())


def test_noise_is_not_told_apart():
    """Of losses that don't depend on the mixture, at most one in six is taken for a better mixture."""
    natural = np.array([0.2, 0.3, 0.5])
    shares = drawn(natural, 16)
    losses = [3 + 0.01 * np.random.default_rng(seed).normal(size=16) for seed in range(6)]
    assert sum(search(shares, one, natural, OPEN, 1).told_apart for one in losses) <= 1


def test_the_natural_mixture_may_be_the_best():
    natural = np.array([0.5, 0.3, 0.2])
    shares = drawn(natural, 24)
    found = search(shares, bowl(shares, 0.02), natural, OPEN, 1)
    assert not found.told_apart

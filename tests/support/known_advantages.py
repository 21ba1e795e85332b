"""What is known of the numbers of reinforcement learning, each fact by a name: a planted bug must break one of them.

Known by hand, by closed forms, and by what must not change them. Modules are imported inside the functions, since a
planted bug is in a fresh copy of them.
"""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from tests.support.facts import Facts
from tests.support.refusal import refused

FACTS = Facts()
# Few sums and products of numbers near 1 in float64: rounding reaches some 1e-15 (measured: at most 4e-16); the least
# of the planted bugs moves a result by 1e-5.
CLOSE = {"rtol": 1e-13, "atol": 1e-14}


def room(name: str) -> Any:
    """A module of coretrain.alignment, as it is now."""
    return import_module(f"coretrain.alignment.{name}")


def answers(seed: int = 0, rows: int = 5, width: int = 9) -> tuple[np.ndarray, np.random.Generator]:
    """A mask of answers between prompts and padding, one of them a single token; and a generator for their numbers."""
    draw = np.random.default_rng(seed)
    starts = draw.integers(0, 4, rows)
    stops = starts + draw.integers(1, width - 4, rows)
    stops[0] = starts[0] + 1
    places = np.arange(width)
    return (places >= starts[:, None]) & (places < stops[:, None]), draw


def soiled(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same with NaN, infinities and large numbers outside the mask."""
    junk = np.resize([np.nan, np.inf, -1e300, 7.0], values.shape)
    return np.where(mask, values, junk)


@FACTS
def gae_by_hand():
    gae, mask = room("advantages").gae, np.ones((1, 3), bool)
    given = [[0.0, 0.0, 1.0]], [[0.5, 0.25, 0.75]], mask, 0.5, 0.5
    # the last: 1 - .75; before it: .5 x .75 - .25 + .25 x .25; the first: .5 x .25 - .5 + .25 x .1875
    assert gae(*given).tolist() == [[-0.328125, 0.1875, 0.25]]
    # cut at its limit, with a value of 2 behind it: 1 + .5 x 2 - .75
    assert gae(*given, np.array([2])).tolist() == gae(*given, [2.0]).tolist()
    assert gae(*given, [2.0]).tolist() == [[-0.328125 + 0.0625, 0.1875 + 0.25, 1.25]]


@FACTS
def gae_with_lambda_1_is_returns_less_values():
    mask, draw = answers()
    rewards, values = draw.normal(size=(2, *mask.shape))
    found = room("advantages").gae(rewards, values, mask, 0.9, 1.0)
    for row, here in enumerate(mask):
        places = np.flatnonzero(here)
        for place in places:
            later = sum(0.9 ** (t - place) * rewards[row, t] for t in places[places >= place])
            assert math.isclose(found[row, place], later - values[row, place], rel_tol=1e-12, abs_tol=1e-13)
    assert_array_equal(found[~mask], 0)


@FACTS
def gae_is_a_sum_of_surprises():
    mask, draw = answers(1)
    rewards, values = draw.normal(size=(2, *mask.shape))
    gamma, lam = 0.97, 0.6
    found = room("advantages").gae(rewards, values, mask, gamma, lam)
    for row, here in enumerate(mask):
        r, v = rewards[row, here], np.append(values[row, here], 0.0)
        surprises = r + gamma * v[1:] - v[:-1]
        factors = np.tril((gamma * lam) ** np.subtract.outer(np.arange(len(r)), np.arange(len(r))))
        assert_allclose(found[row, here], factors.T @ surprises, **CLOSE)


@FACTS
def gae_with_lambda_0_is_one_surprise():
    mask = np.ones((1, 3), bool)
    found = room("advantages").gae([[1.0, 2.0, 4.0]], [[8.0, 16.0, 32.0]], mask, 1.0, 0.0)
    assert found.tolist() == [[1 + 16 - 8, 2 + 32 - 16, 4 - 32]]


@FACTS
def padding_changes_no_bit():
    mask, draw = answers(2)
    one, two = draw.normal(size=(2, *mask.shape))
    wide = [((0, 0), (3, 2)), ((2, 1), (0, 5))]
    gae, whitened = room("advantages").gae, room("advantages").whitened
    token_rewards, totals = room("returns").token_rewards, room("sums").row_totals
    scores = draw.normal(size=len(mask))
    shares, corrections = room("shares").shares, room("corrections").corrections
    exact = (
        lambda m, a, b, s: gae(a, b, m, 0.99, 0.9),
        lambda m, a, b, s: whitened(a, m),
        lambda m, a, b, s: whitened(a, m, shift=False),
        lambda m, a, b, s: token_rewards(s, m, a, 0.1),
        lambda m, a, b, s: shares("token", m, 9),
        lambda m, a, b, s: shares("sequence", m, 9),
        lambda m, a, b, s: shares("constant", m, 9),
        lambda m, a, b, s: room("kl").kl_values("k1", a, b, m),
        lambda m, a, b, s: m * totals(a, m)[:, None],
    )
    of_exponentials = (
        lambda m, a, b, s: room("kl").kl_values("k3", a, b, m),
        lambda m, a, b, s: np.where(m, corrections("truncate", "token", a, b, m, 2.0), 0),
        lambda m, a, b, s: np.where(m, corrections("mask", "sequence", a, b, m, 5.0, 0.5), 0),
    )
    for find in (*exact, *of_exponentials):
        # numpy may compute an exponential otherwise at the end of an array, on some processors: a step, 2e-16
        limit = 0 if find in exact else 1e-14
        plain = find(mask, one, two, scores)
        assert_allclose(find(mask, soiled(one, mask), soiled(two, mask), scores), plain, rtol=limit, atol=0)
        for rows, columns in wide:
            broad = np.pad(mask, (rows, columns))
            more = [soiled(np.pad(values, (rows, columns)), broad) for values in (one, two)]
            found = find(broad, *more, np.pad(scores, rows))
            assert_allclose(found[broad], plain[mask], rtol=limit, atol=0)
            assert_array_equal(found[~broad], 0)


@FACTS
def tokens_of_others_inside_an_answer_are_passed_over():
    mask = np.array([[True, False, True, True]])
    gae = room("advantages").gae
    gap = gae([[1.0, np.nan, 2.0, 4.0]], [[0.5, np.nan, 0.25, 0.125]], mask, 0.5, 0.5)
    whole = gae([[1.0, 2.0, 4.0]], [[0.5, 0.25, 0.125]], np.ones((1, 3), bool), 0.5, 0.5)
    assert_array_equal(gap[mask], whole[0])


@FACTS
def the_order_of_rows_changes_no_bit():
    mask, draw = answers(3, rows=40)
    one, two = draw.normal(size=(2, *mask.shape))
    order, groups = draw.permutation(len(mask)), np.arange(40) // 8
    whitened, group = room("advantages").whitened, room("advantages").group_advantages
    assert_array_equal(whitened(one[order], mask[order]), whitened(one, mask)[order])
    for kind in ("group", "group_std", "rloo"):
        assert_array_equal(group(kind, one[order, 0], groups[order]), group(kind, one[:, 0], groups)[order])
    sequence_kl = room("kl").sequence_kl
    assert sequence_kl("k1", one[order], two[order], mask[order]) == sequence_kl("k1", one, two, mask)


@FACTS
def whitening_by_hand():
    mask = np.array([[True, True, False], [False, True, True]])
    values = np.array([[1.0, 2.0, 100.0], [-100.0, 3.0, 4.0]])
    wanted = (values - 2.5) / math.sqrt(5 / 3 + 1e-8)  # the variance: (2 x 1.5^2 + 2 x .5^2) / 3
    assert_allclose(room("advantages").whitened(values, mask), np.where(mask, wanted, 0), **CLOSE)
    shifted = np.where(mask, wanted + 2.5, 0)
    assert_allclose(room("advantages").whitened(values, mask, shift=False), shifted, **CLOSE)


@FACTS
def whitening_of_equal_numbers_is_exactly_0():
    whitened = room("advantages").whitened
    for count in (1, 2, 3, 7, 49, 1000):
        mask = np.ones((1, count), bool)
        assert_array_equal(whitened(np.full((1, count), 0.1), mask), 0)
        assert_array_equal(whitened(np.full((1, count), 0.1), mask, shift=False), 0.1)
    assert_array_equal(whitened(np.ones((2, 3)), np.zeros((2, 3), bool)), 0)


@FACTS
def groups_by_hand():
    find, rewards, groups = room("advantages").group_advantages, [1.0, 0.0, 0.0, 1.0], np.zeros(4, int)
    assert find("group", rewards, groups).tolist() == [0.5, -0.5, -0.5, 0.5]
    spread = 0.5 / (math.sqrt(1 / 3) + 1e-4)  # the variance: 4 x .25 / 3
    assert_allclose(find("group_std", rewards, groups), [spread, -spread, -spread, spread], **CLOSE)
    # less the mean of the three others
    assert_allclose(find("rloo", rewards, groups), [2 / 3, -2 / 3, -2 / 3, 2 / 3], **CLOSE)


@FACTS
def each_answer_is_compared_with_its_own_group():
    find = room("advantages").group_advantages
    rewards, groups = np.array([1.0, 10.0, 100.0, 2.0, 30.0, 300.0]), np.array([4, 7, 2, 4, 7, 2])
    assert find("group", rewards, groups).tolist() == [-0.5, -10, -100, 0.5, 10, 100]
    assert find("rloo", rewards, groups).tolist() == [-1, -20, -200, 1, 20, 200]


@FACTS
def rloo_is_less_the_mean_of_the_others():
    draw = np.random.default_rng(4)
    rewards, groups = draw.normal(size=20), np.arange(20) % 4
    found = room("advantages").group_advantages("rloo", rewards, groups)
    for row in range(20):
        others = [n for n in range(20) if groups[n] == groups[row] and n != row]
        assert math.isclose(found[row], rewards[row] - rewards[others].mean(), rel_tol=1e-12, abs_tol=1e-14)


@FACTS
def equal_rewards_teach_exactly_nothing():
    find = room("advantages").group_advantages
    for kind in ("group", "group_std", "rloo"):
        for count in (2, 3, 7, 49):
            assert_array_equal(find(kind, np.full(count, 0.1), np.zeros(count, int)), 0)


@FACTS
def rounding_among_equal_rewards_stays_rounding():
    rewards = [0.1 + 0.2] * 7 + [0.3]
    assert rewards[0] != rewards[7]
    near = np.full(8, 1.0)
    near[3] += 2.0**-23  # one step of float32, as a score that depends on its batch may be off
    for kind in ("group", "group_std", "rloo"):
        find = room("advantages").group_advantages
        assert np.abs(find(kind, rewards, np.zeros(8, int))).max() < 1e-9
        assert np.abs(find(kind, near, np.zeros(8, int))).max() < 2e-3  # 1e-7 / 1e-4 = 1e-3


@FACTS
def rewards_keep_their_fractions():
    advantages = room("advantages")
    rewards = [0.7, 0.2, 0.3, 0.4]
    assert_allclose(advantages.group_advantages("group", rewards, np.zeros(4, int)), [0.3, -0.2, -0.1, 0.0], **CLOSE)
    assert advantages.group_advantages("group", [1, 0], np.zeros(2, int)).tolist() == [0.5, -0.5]
    mask = np.array([[False, True, True]])
    assert room("returns").token_rewards([0.7], mask).tolist() == [[0, 0, 0.7]]
    assert room("returns").token_rewards(np.array([3]), mask).tolist() == [[0, 0, 3.0]]
    assert advantages.gae(np.array([[0, 1]]), np.array([[0, 0]]), np.ones((1, 2), bool), 0.5, 1.0).tolist() == [
        [0.5, 1]
    ]


@FACTS
def a_baseline_keeps_all_digits():
    rewards = 1e6 + np.array([0.0, 0.01, 0.02, 0.05])
    exact = [Fraction(one) for one in rewards.tolist()]
    wanted = [float(one - sum(exact) / 4) for one in exact]
    # float64 has steps of 1e-10 at 1e6, float32 of 0.06
    assert_allclose(room("advantages").group_advantages("group", rewards, np.zeros(4, int)), wanted, rtol=0, atol=1e-9)


@FACTS
def rows_left_out_are_in_no_mean():
    find, groups = room("advantages").group_advantages, np.array([0, 0, 0, 1, 1, 1])
    rewards = np.array([1.0, 3.0, np.nan, 5.0, np.inf, 7.0])
    counted = np.array([True, True, False, True, False, True])
    assert find("group", rewards, groups, counted).tolist() == [-1, 1, 0, -1, 0, 1]
    assert find("rloo", rewards, groups, counted).tolist() == [-2, 2, 0, -2, 0, 2]
    spread = 1 / (math.sqrt(2) + 1e-4)
    wanted = [-spread, spread, 0, -spread, 0, spread]
    assert_allclose(find("group_std", rewards, groups, counted), wanted, **CLOSE)
    assert find("rloo", rewards, groups, counted & (rewards < 4)).tolist() == [-2, 2, 0, 0, 0, 0]
    for kind in ("group", "group_std", "rloo"):
        assert find(kind, [5.0, 1.0], np.array([0, 1])).tolist() == [0, 0]  # alone: nothing to be compared with


@FACTS
def a_reward_that_is_no_number_is_named():
    for value in (np.nan, np.inf, -np.inf):
        with refused("alignment/answer-without-finite-reward", "answer 2", str(value)):
            room("advantages").group_advantages("group", [1.0, 2.0, value], np.zeros(3, int))


@FACTS
def groups_without_spread():
    flat = room("advantages").without_spread
    rewards, groups = [1.0, 1.0, 0.0, 1.0, 5.0, 5.0], np.array([0, 0, 1, 1, 2, 2])
    every = np.ones(6, bool)
    assert flat(rewards, groups, every).tolist() == [True, True, False, False, True, True]
    assert flat(rewards, groups, np.array([1, 1, 1, 0, 0, 0], bool)).tolist() == [True, True, True, False, False, False]


@FACTS
def sums_are_rounded_once():
    sums = room("sums")
    assert sums.total(np.array([1e16, 1.0, -1e16, 1.0])) == 2.0
    assert math.isnan(sums.total(np.array([1.0, np.nan])))
    assert sums.total(np.array([np.inf, 1.0])) == math.inf
    assert sums.total(np.array([1e308, 1e308])) == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(sums.total(np.array([np.inf, -np.inf])))
        assert sums.total(np.array([-1e308, -1e308])) == -math.inf
    assert sums.kept(np.ones(1, np.float32), np.ones(1, bool)).dtype == np.float64
    assert sums.mean(np.array([])) == 0.0
    assert sums.variance(np.array([3.0])) == 0.0
    assert sums.variance(np.array([1.0, 3.0])) == 2.0


@FACTS
def many_rows_of_many_tokens_are_as_few():
    draw = np.random.default_rng(6)
    mask = draw.random((350, 360)) < 0.8
    one, two = draw.normal(size=(2, *mask.shape))
    # sums of 100,000 numbers, rounded once here, in pairs by numpy: 1e-15; of a row, one after the other: 1e-13
    near = {"rtol": 1e-10, "atol": 1e-11}
    seen = one[mask]
    wanted = np.where(mask, (one - seen.mean()) / np.sqrt(seen.var(ddof=1) + 1e-8), 0)
    assert_allclose(room("advantages").whitened(one, mask), wanted, **near)
    later = np.where(mask, one, 0)[:, ::-1].cumsum(1)[:, ::-1]
    assert_allclose(room("advantages").gae(one, two, mask, 1.0, 1.0), np.where(mask, later - two, 0), **near)
    groups = np.arange(350) % 2
    means = np.array([one[groups == n, 0].mean() for n in (0, 1)])[groups]
    spreads = np.array([one[groups == n, 0].std(ddof=1) for n in (0, 1)])[groups]
    apart = one[:, 0] - means
    for kind, each in (("group", apart), ("group_std", apart / (spreads + 1e-4)), ("rloo", apart * 175 / 174)):
        assert_allclose(room("advantages").group_advantages(kind, one[:, 0], groups), each, **near)
    distance = np.where(mask, one - two, 0)
    for kind, values in (("k1", distance), ("k2", distance**2 / 2), ("k3", np.exp(-distance) - 1 + distance)):
        assert_allclose(room("kl").kl_values(kind, one, two, mask), values, **near)

"""What is known of KL estimators, shares, corrections and rewards of tokens, each fact by a name.

As in `known_advantages`: a planted bug must break one of them.
"""

from __future__ import annotations

import json
import math

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from coretrain.config.align import AlignConfig
from tests.support.facts import Facts
from tests.support.known_advantages import CLOSE, answers, room
from tests.support.refusal import refused

FACTS = Facts()


@FACTS
def kl_by_hand():
    find, mask = room("kl").kl_values, np.array([[True, True, False]])
    policy, reference = np.log([[0.5, 0.25, 1.0]]), np.log([[0.25, 0.5, 0.5]])
    two = math.log(2)
    # the policy takes the first token for twice as likely as the reference does: k1 is above 0
    assert_allclose(find("k1", policy, reference, mask), [[two, -two, 0]], **CLOSE)
    assert_allclose(find("k2", policy, reference, mask), [[two**2 / 2, two**2 / 2, 0]], **CLOSE)
    assert_allclose(find("k3", policy, reference, mask), [[0.5 - 1 + two, 2 - 1 - two, 0]], **CLOSE)


@FACTS
def k1_and_k3_have_the_divergence_as_their_mean():
    draw = np.random.default_rng(5)
    policy, reference = (np.log(draw.dirichlet(np.ones(50)))[None] for _ in range(2))
    wanted = float((np.exp(policy) * (policy - reference)).sum())
    mask = np.ones((1, 50), bool)
    for estimator in ("k1", "k3"):
        found = float((np.exp(policy) * room("kl").kl_values(estimator, policy, reference, mask)).sum())
        assert math.isclose(found, wanted, rel_tol=1e-12)
    for estimator in ("k2", "k3"):
        assert room("kl").kl_values(estimator, policy, reference, mask).min() >= 0


@FACTS
def k3_of_what_is_near_keeps_its_digits():
    near, mask = np.array([[1e-9, -1e-9]]), np.ones((1, 2), bool)
    # d^2 / 2 + ...; where 1 is taken from exp(-d), 1e-16 is left of 5e-19
    assert_allclose(room("kl").kl_values("k3", near, np.zeros((1, 2)), mask), [[5e-19, 5e-19]], rtol=1e-6)


@FACTS
def kl_of_an_answer_is_a_sum_and_of_answers_a_mean():
    mask = np.array([[True, True, False], [True, False, False], [False, False, False]])
    policy = np.array([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    assert room("kl").sequence_kl("k1", policy, np.zeros((3, 3)), mask) == 4.0


@FACTS
def the_coefficient_follows_the_divergence():
    Controller = room("kl").Controller
    adaptive = Controller(adaptive=True, target=6.0, horizon=1000)
    assert math.isclose(adaptive.after(0.2, 12.0, 100), 0.2 * (1 + 0.2 * 0.1))
    assert math.isclose(adaptive.after(0.2, math.inf, 100), 0.2 * (1 + 0.2 * 0.1))
    assert math.isclose(adaptive.after(0.2, 6.6, 100), 0.2 * (1 + 0.1 * 0.1))
    assert math.isclose(adaptive.after(0.2, 5.4, 100), 0.2 * (1 - 0.1 * 0.1))
    assert math.isclose(adaptive.after(0.2, -3.0, 100), 0.2 * (1 - 0.2 * 0.1))
    assert adaptive.after(0.2, math.nan, 100) == 0.2
    assert adaptive.after(0.2, 0.0, 10_000) == 0.0  # never below
    assert Controller(adaptive=False, target=6.0, horizon=1000).after(0.2, 12.0, 100) == 0.2


@FACTS
def the_coefficient_is_kept():
    kl = room("kl")
    kept = json.loads(json.dumps(kl.coefficient_state(0.1 + 0.2)))
    assert kl.read_coefficient(kept, 1.0) == 0.1 + 0.2
    assert kl.read_coefficient({}, 0.5) == 0.5
    assert kl.read_coefficient({"kl_coefficient": 0}, 0.5) == 0.0
    for wrong in (math.nan, -1.0, math.inf, "0.1", None, True, [1]):
        with refused("alignment/kl-coefficient-damaged", repr(wrong)):
            kl.read_coefficient({"kl_coefficient": wrong}, 1.0)


@FACTS
def shares_by_hand():
    find = room("shares").shares
    mask = np.array([[True, False, False, False], [False, True, True, True], [False, False, False, False]])
    assert find("token", mask, 8).tolist() == [[0.25, 0, 0, 0], [0, 0.25, 0.25, 0.25], [0, 0, 0, 0]]
    third = 1 / 6
    assert find("sequence", mask, 8).tolist() == [[0.5, 0, 0, 0], [0, third, third, third], [0, 0, 0, 0]]
    part = 1 / 16
    assert find("constant", mask, 8).tolist() == [[part, 0, 0, 0], [0, part, part, part], [0, 0, 0, 0]]


@FACTS
def shares_sum_to_1():
    for seed in range(20):
        mask, draw = answers(seed, rows=17)
        counted = draw.random(17) < 0.7
        for aggregate in ("token", "sequence"):
            for kept in (None, counted):
                # at most 136 numbers, each off by half a step: 136 x 2^-53 / 2 of 1
                assert math.isclose(
                    math.fsum(room("shares").shares(aggregate, mask, 9, kept).ravel()), 1, rel_tol=1e-14
                )


@FACTS
def rows_left_out_are_in_no_divisor():
    find = room("shares").shares
    mask, counted = np.ones((3, 4), bool), np.array([True, False, True])
    whole = mask[:2]
    for aggregate in ("token", "sequence", "constant"):
        found = find(aggregate, mask, 8, counted)
        assert_array_equal(found[1], 0)
        one = np.array([[False, True]])
        assert find(aggregate, one, 1).tolist() == [[0, 1]]
        assert_array_equal(found[[0, 2]], find(aggregate, whole, 8))
        with np.errstate(divide="raise"):
            assert_array_equal(find(aggregate, mask, 8, np.zeros(3, bool)), 0)


@FACTS
def corrections_by_hand():
    find = room("corrections").corrections
    mask = np.array([[True, True, True, False]])
    old, sampled = np.log([[0.9, 0.1, 0.24, 0.1]]), np.log([[0.3, 0.4, 0.2, 0.9]])
    assert_allclose(find("truncate", "token", old, sampled, mask, 2.0), [[2, 0.25, 1.2, 1]], **CLOSE)
    assert_allclose(find("mask", "token", old, sampled, mask, 5.0, 0.5), [[3, 0, 1.2, 1]], **CLOSE)
    assert_allclose(find("mask", "token", old, sampled, mask, 2.0, 0.1), [[0, 0.25, 1.2, 1]], **CLOSE)
    product = 3 * 0.25 * 1.2
    assert_allclose(find("truncate", "sequence", old, sampled, mask, 2.0), [[*[product] * 3, 1]], **CLOSE)
    assert_allclose(find("truncate", "sequence", old, sampled, mask, 0.8), [[0.8, 0.8, 0.8, 1]], **CLOSE)
    assert_allclose(find("mask", "sequence", old, sampled, mask, 5.0, 0.95), [[0, 0, 0, 1]], **CLOSE)
    for level in ("token", "sequence"):
        assert find("none", level, old, sampled, mask, 2.0).tolist() == [[1, 1, 1, 1]]
        assert find("truncate", level, old, old, mask, 2.0).tolist() == [[1, 1, 1, 1]]


@FACTS
def a_ratio_beyond_all_numbers_is_cut():
    find, mask = room("corrections").corrections, np.ones((1, 2), bool)
    old, sampled = np.zeros((1, 2)), np.full((1, 2), -800.0)
    for level in ("token", "sequence"):
        with np.errstate(over="raise"):
            assert find("truncate", level, old, sampled, mask, 2.0).tolist() == [[2, 2]]
            assert find("mask", level, old, sampled, mask, 2.0).tolist() == [[0, 0]]
    with np.errstate(over="raise"):
        assert room("kl").kl_values("k3", sampled, old, mask).tolist() == [[math.inf, math.inf]]


@FACTS
def a_weight_at_a_limit_counts():
    find, mask, zero = room("corrections").corrections, np.ones((1, 1), bool), np.zeros((1, 1))
    assert find("mask", "token", zero, zero, mask, 1.0, 0.5).tolist() == [[1]]
    assert find("mask", "token", zero, zero, mask, 5.0, 1.0).tolist() == [[1]]
    assert find("mask", "token", zero - 3, zero, mask, 5.0).tolist() == [[math.exp(-3)]]  # no floor


@FACTS
def a_score_stands_at_the_last_token():
    find = room("returns").token_rewards
    mask = np.array([[False, True, True, False], [True, True, True, True], [False] * 4])
    assert find([5.0, 7.0, 9.0], mask).tolist() == [[0, 0, 5, 0], [0, 0, 0, 7], [0, 0, 0, 0]]
    assert find([5, 7, 9], mask, np.ones(mask.shape)).tolist() == find([5, 7, 9], mask).tolist()
    kl = np.array([[9.0, 1.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0], [9.0] * 4])
    wanted = [[0, -0.5, 5 - 1, 0], [-0.5, -1, -1.5, 7 - 2], [0, 0, 0, 0]]
    assert find([5.0, 7.0, 9.0], mask, kl, 0.5).tolist() == wanted


@FACTS
def what_the_value_function_foretold():
    find, mask = room("returns").explained_variance, np.array([[True, True, True, False]])
    returns = np.array([[1.0, 2.0, 3.0, np.nan]])
    assert find(returns, returns, mask) == 1.0
    assert find(np.full((1, 4), 7.0), returns, mask) == 0.0
    assert find([[3.0, 2.0, 1.0, 0.0]], returns, mask) == -3.0  # differences -2, 0, 2 have 4 times the variance
    assert find(returns, np.ones((1, 4)), mask) == 0.0


@FACTS
def what_of_a_score_counts():
    find = room("returns").settled_scores
    align = AlignConfig(tokens=8, reward_clip=2.0, missing_end=0.25, overlong_buffer=4, overlong_penalty=0.5)
    scores, ended = [3.0, -3.0, 0.5, 0.5, 0.5], np.array([True, True, False, True, True])
    # of 8 tokens the last 4 are the buffer: 2 are before it, 5 fill a quarter of it, 8 all
    found = find(align, scores, ended, np.array([2, 4, 5, 8, 6]))
    assert found.tolist() == [2, -2, 0.5 - 0.125 - 0.25, 0.5 - 0.5, 0.5 - 0.25]
    many = find(align, np.ones(400), np.ones(400, bool), np.full(400, 6))
    assert many.tolist() == [0.75] * 400
    assert find(align, [1, 0], ended[1:3], np.array([2, 9])).tolist() == [1, 0 - 0.5 - 0.25]
    # the clip is of the reward: what is taken off afterwards goes below it
    assert find(align, [3.0, -3.0], np.zeros(2, bool), np.array([8, 8])).tolist() == [2 - 0.75, -2 - 0.75]
    assert find(AlignConfig(), [0.7, -9.0], ended[1:3], np.array([64, 1])).tolist() == [0.7, -9]

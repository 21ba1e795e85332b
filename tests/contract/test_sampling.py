"""Choosing tokens from logits by uniform numbers that both stacks share."""

from __future__ import annotations

import decimal
import hashlib
import math

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.contract import sampling as contract
from coretrain.contract.randomness import raw_words
from coretrain.contract.sampling import BITS, LOWEST, PIECE, STEPS, Sampling, choose_tokens, token_weights
from tests.support.refusal import refused

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = np.log(np.tile(PROBABILITIES, (5000, 1)))


def chosen(*sampling: float) -> np.ndarray:
    return choose_tokens(LOGITS, Sampling(*sampling), 0)


def test_shares_follow_the_probabilities():
    shares = np.bincount(chosen(1.0, 0, 1.0, 1), minlength=4) / len(LOGITS)
    assert np.abs(shares - PROBABILITIES).max() < 0.036  # five standard errors of the largest


def test_temperature_sharpens():
    shares = np.bincount(chosen(0.5, 0, 1.0, 1), minlength=4) / len(LOGITS)
    assert np.abs(shares - PROBABILITIES**2 / (PROBABILITIES**2).sum()).max() < 0.036


@pytest.mark.parametrize(
    ("sampling", "kept"), [((1.0, 2, 1.0, 1), {0, 1}), ((1.0, 0, 0.75, 1), {0, 1}), ((0.0, 0, 1.0, 1), {0})]
)
def test_what_is_kept(sampling, kept):
    assert set(chosen(*sampling)) == kept


def test_equal_logits_are_kept_by_id():
    """As a stable sort of all logits has them, though only the largest are sorted."""
    logits = np.random.default_rng(0).integers(0, 9, (20, 60)).astype(float)
    last = np.take_along_axis(logits, np.argsort(-logits, kind="stable")[:, 11:12], -1)
    ids = np.concatenate([choose_tokens(logits, Sampling(4.0, 12, 1.0, 0), n)[:, None] for n in range(200)], 1)
    for row, cut, found in zip(logits, last, ids, strict=True):
        larger, equal = np.flatnonzero(row > cut), np.flatnonzero(row == cut)
        assert set(found) == {*larger, *equal[: 12 - len(larger)]}


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", ".")):
        Sampling(**wrong)


def fixed_logits(rows: int, vocab: int) -> np.ndarray:
    """Multiples of 2^-17 in (-16, 16), out of a stream that is the same on every machine."""
    words = raw_words(5, "logits", 0, rows * vocab).reshape(rows, vocab)
    return ((words >> np.uint64(42)).astype(np.float32) - np.float32(2**21)) * np.float32(2.0**-17)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_weights_are_exponentials_to_half_a_unit(temperature):
    """Against 40 digits. A logit too small for any weight, and none at all, have 0."""
    decimal.getcontext().prec = 40
    below = np.array(
        [0, -(2.0**-40), -0.1, -1, -8, -20, -26, -28.5, -60, -math.inf, *-27 * np.random.default_rng(0).random(200)]
    )
    logits = 3.5 + temperature * below
    found = token_weights(logits, 3.5, temperature)
    for logit, weight in zip(logits, found.tolist(), strict=True):
        exact = (decimal.Decimal(logit) - decimal.Decimal("3.5")) / decimal.Decimal(temperature)
        assert abs(decimal.Decimal(weight) - 2**BITS * exact.exp()) < 0.51, logit
    assert found[0] == 2**BITS
    assert not found[8:10].any()
    assert (token_weights(np.array([-1.0, 0.0]), 0.0, 5e-324) == [0, 2**BITS]).all(), "a temperature near 0 is greedy"


def test_the_table_of_powers_is_correctly_rounded():
    decimal.getcontext().prec = 60
    powers = contract._powers()
    for k in (1, 17, STEPS - 1, STEPS, 5 * STEPS + 3, -LOWEST - 1, -LOWEST):
        assert powers[k] == float(decimal.Decimal(2) ** (BITS + (k + LOWEST) / decimal.Decimal(STEPS))), k
    assert powers[0] == 0


def test_choices_are_the_same_on_every_processor():
    """Only operations that IEEE 754 fixes to the last bit: numpy's exponential is none."""
    logits, digest = fixed_logits(40, 3 * PIECE // 2), hashlib.blake2b(digest_size=8)
    digest.update(token_weights(logits[0], float(logits[0].max()), 0.7).astype("<f8").tobytes())
    for sampling in (
        Sampling(2.0, 0, 1.0, 1),
        Sampling(2.0, 40, 1.0, 1),
        Sampling(2.0, 0, 0.7, 1),
        Sampling(4.0, 0, 0.99, 2),
    ):
        digest.update(choose_tokens(logits, sampling, 3).astype("<i8").tobytes())
    assert digest.hexdigest() == "eecf2affe8cea119"


def by_definition(logits: np.ndarray, sampling: Sampling, numbers: np.ndarray) -> list[int]:
    """Python's own whole numbers, all tokens sorted."""
    chosen = []
    for row, number in zip(logits, numbers, strict=True):
        cut = 0 < sampling.top_k < len(row) or sampling.top_p < 1
        order = sorted(range(len(row)), key=lambda i: -row[i]) if cut else list(range(len(row)))
        weights = [int(w) for w in token_weights(row, float(row.max()), sampling.temperature)]
        order = order[: sampling.top_k or None]
        total, before, kept = sum(weights[i] for i in order), 0, []
        for i in order:
            if before < sampling.top_p * total:
                kept.append(i)
            before += weights[i]
        drawn, passed = math.floor(number * sum(weights[i] for i in kept)), 0
        for i in kept:
            passed += weights[i]
            if passed > drawn:
                chosen.append(i)
                break
    return chosen


@pytest.mark.parametrize(
    "sampling", [(1.0, 0, 1.0), (9.0, 0, 1.0), (1.0, 30, 1.0), (9.0, 500, 0.9), (1.0, 0, 0.9), (9.0, 0, 0.97)]
)
def test_tokens_are_those_of_the_definition(sampling, monkeypatch):
    """In several pieces; sets for top-p that are found at once and after trials; the ends of (0, 1)."""
    monkeypatch.setattr(contract, "PIECE", 700)
    numbers = np.array([2.0**-54, 0.25, 0.5, 0.75, 1 - 2.0**-53, *np.random.default_rng(1).random(7)])
    monkeypatch.setattr(contract, "uniforms", lambda seed, purpose, position, count: numbers[:count])
    logits = fixed_logits(len(numbers), 3000)
    logits[:, [5, 700, 2999]] = -math.inf
    logits[3] = logits[3].round()  # many are equal
    one = Sampling(*sampling)
    expected = by_definition(logits, one, numbers)
    assert choose_tokens(logits, one, 0).tolist() == expected
    assert len(set(expected)) > 4


@pytest.mark.parametrize("sampling", [(1.0, 0, 1.0, 1), (1.0, 7, 1.0, 1), (1.0, 0, 0.8, 1)])
def test_a_rows_token_depends_on_its_number_alone(sampling):
    logits, rows = fixed_logits(9, 200), np.array([1, 4, 8])
    whole = choose_tokens(logits, Sampling(*sampling), 6)
    assert choose_tokens(logits[rows], Sampling(*sampling), 6, rows).tolist() == whole[rows].tolist()
    assert choose_tokens(logits[rows], Sampling(*sampling), 6).tolist() != whole[rows].tolist()
    assert choose_tokens(logits, Sampling(*sampling), 7).tolist() != whole.tolist()


@pytest.mark.parametrize("row", [[1.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers_are_refused(row, temperature):
    with refused("contract/logits-not-finite", "diverged"):
        choose_tokens(np.array([[0.0, 1.0], row]), Sampling(temperature, 0), 0)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0, 5e-324])
@pytest.mark.parametrize("vocab", [5, PIECE + 7])
def test_what_is_nearly_chosen_is_what_the_weights_choose(vocab, temperature):
    """Where it says that it is sure: far from the ends of an id's part. Near them it never is."""
    sampling, sure = Sampling(temperature, 0, 1.0, 0), 0
    for seed in range(4):
        logits = np.random.default_rng(seed).normal(size=vocab) * 3
        weights = token_weights(logits, logits.max(), temperature)
        ends = np.cumsum(weights) / weights.sum()
        numbers = np.random.default_rng(seed).random(20)
        for number in numbers:
            near, certain = contract._nearly(logits, temperature, number)
            exact = contract._exactly(logits, sampling, number)
            assert not certain or near == exact
            assert contract._choose_of_all(logits, sampling, number) == exact
            sure += certain
        inner = ends[(ends > 0) & (ends < 1)]
        for end in inner[:: max(1, len(inner) // 20)]:
            for number in (end, np.nextafter(end, 0), np.nextafter(end, 1), end + 1e-12, end - 1e-12):
                assert not contract._nearly(logits, temperature, number)[1]
                assert contract._choose_of_all(logits, sampling, number) == contract._exactly(logits, sampling, number)
    assert sure > 60, "else nothing is gained"


def test_a_weight_is_within_one_of_numpy_s_exponential():
    """The bound that what is nearly chosen rests on, at its largest: of half a unit and no more."""
    below = np.concatenate([-np.linspace(0, 30, 20_001), [-100.0, -math.inf]])
    for temperature in (1.0, 0.3, 7.0):
        weights = token_weights(temperature * below + 2.5, 2.5, temperature)
        # of 0.51, and 2^BITS x 30 x 2^-52 by which the exponents are rounded otherwise: 2e-3
        assert np.abs(weights - 2.0**BITS * np.exp((temperature * below + 2.5 - 2.5) / temperature)).max() < 0.6

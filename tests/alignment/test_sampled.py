"""What a sampler returns, on the host: ids with the one that ends them, and their log-probabilities, row by row."""

from __future__ import annotations

import decimal
import math

import numpy as np
import pytest

from coretrain.contract.decoding import Sampled, chosen_logprobs, decode, replay, row_numbers, sample, shared_prompts
from coretrain.contract.sampling import PIECE, Sampling, pad_prompts
from tests.support.refusal import refused

PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 7]]
VOCAB, STEPS, SLOTS = 9, 6, 9
EVERY = Sampling(1.0, 0, 1.0, 4)


class Cached:
    """A model whose logits depend on a row's own tokens and positions, which it keeps in a cache, as a stack does."""

    def __init__(self, prompts, fewer=lambda going, rows, left: going) -> None:
        self.cache, self.fewer, self.sizes = [[] for _ in prompts], fewer, list[int]()

    def __call__(self, tokens, positions, mask, at) -> np.ndarray:
        self.sizes.append(len(tokens))
        for row, ids, places, seen in zip(self.cache, tokens, positions, mask[:, -1], strict=True):
            real = int(seen.sum()) - len(row)
            row += list(zip(ids[-real:].tolist(), places[-real:].tolist(), strict=True))
        return np.stack([logits_after(row) for row in self.cache])

    def keep(self, places) -> None:
        self.cache = [self.cache[place] for place in places]

    def steps(self):
        return self, self.keep, self.fewer


def logits_after(seen) -> np.ndarray:
    """Logits [V] after tokens at their positions: numbers that no other row has."""
    seed = [token + VOCAB * position for token, position in seen]
    return 2 * np.random.default_rng(seed).standard_normal(VOCAB)


def sampled(prompts, sampling=EVERY, stop=(0, 5), numbers=None, fewer=None, tokens=STEPS) -> list[Sampled]:
    padded = pad_prompts(prompts, VOCAB, 99, tokens)
    model = Cached(prompts, *([fewer] if fewer else []))
    return sample(padded, SLOTS, tokens, sampling, stop, *model.steps(), row_numbers(numbers, len(prompts)))


def expected(prompt, answer, temperature) -> list[float]:
    """Log-probabilities of an answer's ids, one row at a time, without a cache."""
    found = []
    for at, token in enumerate(answer):
        logits = logits_after(list(zip([*prompt, *answer[:at]], range(99), strict=False))) / temperature
        found.append(float(logits[token] - np.logaddexp.reduce(logits)))
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_log_probabilities_are_of_the_row_s_own_logits_over_the_temperature(temperature):
    """Rows end at different steps and leave the batch; the id that ends one has its log-probability too."""
    rows = sampled(PROMPTS, Sampling(temperature, 0, 1.0, 4))
    lengths = [len(row.ids) for row in rows]
    assert len(set(lengths)) > 2, "all ending at once would prove little"
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert len(row.ids) == len(row.logprobs)
        assert row.ended == (row.ids[-1] in (0, 5))
        assert not {0, 5} & set(row.ids[:-1])
        assert row.ended or len(row.ids) == STEPS
        # a few roundings of numbers below 8: 2e-15; a neighbour's or another temperature's are off by 0.1
        assert row.logprobs == pytest.approx(expected(prompt, row.ids, temperature), abs=1e-13)


def test_the_ids_are_those_that_are_generated():
    for stop in ((), (0, 5), tuple(range(VOCAB))):
        padded = pad_prompts(PROMPTS, VOCAB, 99, STEPS)
        said = decode(padded, SLOTS, STEPS, EVERY, stop, *Cached(PROMPTS).steps())
        assert said == [row.ids[:-1] if row.ended else row.ids for row in sampled(PROMPTS, stop=stop)]


def test_top_k_and_top_p_cut_after_the_log_probability():
    """It is that of the whole distribution, which the trainer's is of."""
    for row, prompt in zip(sampled(PROMPTS, Sampling(0.7, 3, 0.8, 1)), PROMPTS, strict=True):
        assert row.logprobs == pytest.approx(expected(prompt, row.ids, 0.7), abs=1e-13)


def test_greedy_has_the_log_probabilities_of_temperature_1():
    for row, prompt in zip(sampled(PROMPTS, Sampling(0.0)), PROMPTS, strict=True):
        assert row.logprobs == pytest.approx(expected(prompt, row.ids, 1.0), abs=1e-13)


def test_a_row_says_the_same_in_any_order_any_batch_and_beside_any_neighbour():
    """By its number in a larger set of prompts; without numbers, by its place."""
    whole = sampled(PROMPTS)
    assert whole == sampled(PROMPTS, fewer=lambda going, rows, left: rows)
    for order in ([2, 0, 3, 1], [3], [1, 2], [0, 3]):
        assert sampled([PROMPTS[row] for row in order], numbers=order) == [whole[row] for row in order]
    assert sampled([PROMPTS[3]])[0] != whole[3], "row 0 draws other numbers than row 3"
    assert sampled(PROMPTS, Sampling(1.0, 0, 1.0, 5)) != whole, "another seed draws others"


def test_one_prompt_many_times_has_many_answers():
    rows = sampled([PROMPTS[0]] * 8)
    assert len({tuple(row.ids) for row in rows}) > 5


def test_an_answer_longer_than_asked_for_has_not_ended():
    """Cut in the middle, it begins as the longer one."""
    long, short = sampled(PROMPTS), sampled(PROMPTS, tokens=2)
    for whole, cut in zip(long, short, strict=True):
        assert whole.ids[:2] == cut.ids
        assert whole.logprobs[:2] == cut.logprobs
        assert cut.ended == (whole.ended and len(whole.ids) <= 2)


def replayed(prompts, answers, temperature=1.0, tokens=STEPS, fewer=None):
    padded = pad_prompts(prompts, VOCAB, 99, tokens)
    model = Cached(prompts, *([fewer] if fewer else []))
    return model, replay(padded, SLOTS, tokens, temperature, answers, *model.steps())


@pytest.mark.parametrize("fewer", [None, lambda going, rows, left: 2 if going <= 2 < rows else rows])
def test_a_replay_goes_through_the_same_steps(fewer):
    """As many of them, with as many rows each, and the same bits."""
    padded, model = pad_prompts(PROMPTS, VOCAB, 99, STEPS), Cached(PROMPTS, *([fewer] if fewer else []))
    rows = sample(padded, SLOTS, STEPS, Sampling(0.7, 0, 1.0, 4), (0, 5), *model.steps(), row_numbers(None, 4))
    again, found = replayed(PROMPTS, [row.ids for row in rows], 0.7, fewer=fewer)
    assert found == [row.logprobs for row in rows]
    assert again.sizes == model.sizes
    assert len(set(again.sizes)) > 1


@pytest.mark.parametrize("answers", [[[1], [2], [3]], [[1], [2], [3], []], [[1], [2], [3], [1] * 7], []])
def test_what_no_sample_gave_is_not_replayed(answers):
    with refused("contract/answers-not-sampled", f"{len(answers)} answers", "at most 6"):
        replayed(PROMPTS, answers)


@pytest.mark.parametrize("numbers", [[0, 1], [0, 1, 2, -1]])
def test_numbers_that_are_not_the_rows(numbers):
    with refused("contract/row-numbers-wrong", "4 prompts"):
        sampled(PROMPTS, numbers=numbers)


def exact(logits, token, temperature) -> float:
    """To 40 digits."""
    decimal.getcontext().prec = 40
    scaled = [decimal.Decimal(float(x)) / decimal.Decimal(temperature) for x in logits]
    return float(scaled[token] - sum(x.exp() for x in scaled).ln())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_log_probabilities_to_40_digits(dtype, temperature):
    """In float64 whatever the logits are in; also far apart, and far from 0."""
    rng = np.random.default_rng(3)
    for logits in (rng.normal(size=50), 30 * rng.normal(size=50), 1000 + rng.normal(size=50)):
        row = logits.astype(dtype)
        for token in (0, int(row.argmax()), int(row.argmin())):
            found = chosen_logprobs(row[None], np.array([token]), temperature)
            assert found.dtype == np.float64
            # floor 4e-16 of the number; a sum in float32 is at 1e-7
            assert found[0] == pytest.approx(exact(row, token, temperature), rel=1e-14)


def test_a_vocabulary_is_summed_in_pieces():
    """Of equal logits the log-probability is that of one of so many, also past the end of a piece."""
    for size in (PIECE - 1, PIECE, 2 * PIECE + 3):
        found = chosen_logprobs(np.full((1, size), 7.0, np.float32), np.array([size - 1]), 2.0)
        assert found[0] == -math.log(size)


def test_extremes():
    """What is impossible has no probability; near temperature 0 all is the likeliest's."""
    logits = np.array([[0.0, -math.inf, 1.0]])
    assert chosen_logprobs(logits, np.array([1]), 1.0)[0] == -math.inf
    assert chosen_logprobs(logits, np.array([2]), 5e-324)[0] == 0
    assert chosen_logprobs(logits, np.array([0]), 5e-324)[0] == -math.inf
    assert chosen_logprobs(logits[:0], np.array([], np.int64), 1.0).shape == (0,)


def test_prompts_that_are_shared():
    """By their ids and their length: a prompt that begins with a 0 isn't one that is padded with it."""
    places, which = shared_prompts(pad_prompts([[1, 2], [0, 3], [1, 2], [3], [0, 3], [3, 3]], 9, 20, 2))
    assert places.tolist() == [0, 1, 3, 5]
    assert which.tolist() == [0, 1, 0, 2, 1, 3]

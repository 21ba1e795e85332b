"""Generation on the host: which tokens are fed where, what is chosen by hand and by transformers, when a row ends."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from coretrain.contract.decoding import decode
from coretrain.contract.sampling import Sampling, choose_tokens, pad_prompts
from tests.support.refusal import refused

ROWS, VOCAB = 64, 23
GREEDY = Sampling(0.0)
LOGITS = 2 * np.random.default_rng(5).standard_normal((ROWS, VOCAB))


def uniforms_of(seed: int, position: int, count: int) -> np.ndarray:
    """The stream by numpy's own generator: the top 53 bits, in the middle of their interval."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}:sampling".encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key, counter=position << 192).random_raw(count)
    return np.array([((int(word) >> 11) + 0.5) / 2**53 for word in words])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (0.5, 23, 1.0),
        (2.0, 7, 1.0),
        (1.0, 1, 1.0),
        (1.0, 0, 0.6),
        (0.7, 9, 0.8),
        (3.0, 23, 0.99),
    ],
)
@pytest.mark.parametrize(("seed", "position"), [(0, 0), (7, 3), (7, 2000)])
def test_tokens_are_those_of_transformers_warpers(temperature, top_k, top_p, seed, position):
    """Its probabilities after temperature, top-k and top-p; the token where their sum passes the number: by falling
    probability where something is cut, else by id."""
    scores = torch.from_numpy(LOGITS)
    warpers = [TemperatureLogitsWarper(temperature), *([TopKLogitsWarper(top_k)] if top_k else [])]
    for warper in [*warpers, *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]:
        scores = warper(None, scores)
    probabilities = torch.softmax(scores, -1).numpy()
    cut = 0 < top_k < VOCAB or top_p < 1
    order = np.argsort(-LOGITS, axis=-1, kind="stable") if cut else np.tile(np.arange(VOCAB), (ROWS, 1))
    sums = np.cumsum(np.take_along_axis(probabilities, order, -1), -1)
    numbers = uniforms_of(seed, position, ROWS)
    expected = [order[row, np.flatnonzero(sums[row] > numbers[row])[0]] for row in range(ROWS)]
    found = choose_tokens(LOGITS, Sampling(temperature, top_k, top_p, seed), position)
    assert found.tolist() == expected
    assert top_k == 1 or len(set(expected)) > 5


def test_the_cuts_by_hand():
    """Halves and quarters, which are exact: top-p takes the smallest set that reaches it, also where it just does."""
    logits = np.log(np.tile([0.25, 0.5, 0.125, 0.125], (400, 1)))
    for top_p, kept in ((0.5, {1}), (0.5 + 1e-9, {0, 1}), (0.75, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        assert set(choose_tokens(logits, Sampling(1.0, 0, top_p, 0), 0)) == kept, top_p
    for top_k, kept in ((1, {1}), (2, {0, 1}), (3, {0, 1, 2}), (4, {0, 1, 2, 3}), (99, {0, 1, 2, 3})):
        assert set(choose_tokens(logits, Sampling(1.0, top_k, 1.0, 0), 0)) == kept, top_k
    # what top-k leaves has the probabilities 2/3 and 1/3: 0.6 takes the first alone, 0.7 both
    for top_p, kept in ((0.6, {1}), (0.7, {0, 1})):
        assert set(choose_tokens(logits, Sampling(1.0, 2, top_p, 0), 0)) == kept, top_p


def test_greedy_takes_the_first_of_equals():
    logits = np.array([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-math.inf, -2.0, -1.0, -1.0]])
    for top_k in (0, 3):
        assert choose_tokens(logits, Sampling(0.0, top_k), 5).tolist() == [1, 0, 2]


def test_defaults_and_limits():
    assert vars(Sampling()) == {"temperature": 0.8, "top_k": 50, "top_p": 1.0, "seed": 0}
    Sampling(0.0, 0, 1.0)
    Sampling(1e-9, 1, 1e-9)
    for wrong in ({"top_p": 1 + 1e-9}, {"top_p": 0.0}, {"temperature": -1e-9}, {"temperature": math.inf}):
        with pytest.raises(Exception, match=next(iter(wrong)).replace("_", ".")):
            Sampling(**wrong)


class Told:
    """A model that says what it was told: at step n it wants `wanted[n]` of each row. Its cache: the rows' numbers."""

    def __init__(self, wanted: list[list[int]], fewer=lambda going, rows, left: going) -> None:
        self.wanted, self.fewer, self.seen, self.cache = wanted, fewer, list[tuple](), np.arange(len(wanted[0]))

    def __call__(self, tokens, positions, mask, at) -> np.ndarray:
        self.seen.append((tokens.tolist(), positions.tolist(), mask.astype(int).tolist(), at))
        assert tokens.dtype == positions.dtype == np.int32
        assert len(tokens) == len(positions) == len(mask) == len(self.cache)
        return np.eye(10)[np.array(self.wanted[len(self.seen) - 1])[self.cache]]

    def keep(self, places) -> None:
        self.cache = self.cache[places]

    def says(self, prompts, slots, tokens, stop, said=None, sampling=GREEDY):
        return decode(prompts, slots, tokens, sampling, stop, self, self.keep, self.fewer, said)


def test_what_is_fed_by_hand():
    """Two prompts, of 3 tokens and of 1: the second is padded by two slots, which nobody sees."""
    model, said = Told([[4, 7], [5, 8], [9, 6]]), list[list[int]]()
    prompts = pad_prompts([[1, 2, 3], [6]], 10, 8, 3)
    found = model.says(prompts, 6, 3, (), lambda ids: said.append(ids.tolist()))
    assert found == [[4, 5, 9], [7, 8, 6]]
    assert said == [[4, 7], [5, 8], [9, 6]]
    first, second, third = model.seen
    assert first == (
        [[1, 2, 3], [0, 0, 6]],
        [[0, 1, 2], [0, 0, 0]],
        [
            [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]],
            [[0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]],
        ],
        0,
    )
    assert second == ([[4], [7]], [[3], [1]], [[[1, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 0, 0]]], 3)
    assert third == ([[5], [8]], [[4], [2]], [[[1, 1, 1, 1, 1, 0]], [[0, 0, 1, 1, 1, 0]]], 4)


def test_a_row_that_has_ended_leaves_and_the_last_one_ends_it_all():
    """The second of three is padded by one slot, the third by two; the first ends at once, the third next."""
    model, said = Told([[9, 4, 5], [0, 6, 9], [0, 7, 0], [0, 9, 0], [0, 3, 0]]), list[list[int]]()
    prompts = pad_prompts([[1, 2, 3], [4, 5], [6]], 10, 9, 6)
    found = model.says(prompts, 9, 6, {9}, lambda ids: said.append(ids.tolist()))
    assert (found, len(model.seen)) == ([[], [4, 6, 7], [5]], 4)
    assert said == [[9, 4, 5], [9, 6, 9], [9, 7, 9]], "the step that ends all has nothing to show"
    assert model.seen[1][:2] == ([[4], [5]], [[2], [1]])
    assert model.seen[1][2] == [[[0, 1, 1, 1, 0, 0, 0, 0, 0]], [[0, 0, 1, 1, 0, 0, 0, 0, 0]]]
    assert model.seen[2] == ([[6]], [[3]], [[[0, 1, 1, 1, 1, 0, 0, 0, 0]]], 4)
    assert model.seen[3][:2] == ([[7]], [[4]])


def test_a_stack_may_go_on_with_more_rows_than_it_must():
    """Three of six go on, in a batch of four: the first that has ended fills it up, and says what it said last."""
    wanted = [[9, 1, 9, 2, 9, 3], [8, 4, 8, 5, 8, 6], [8, 9, 8, 7, 8, 8], [8, 8, 8, 1, 8, 2]]
    model, said = Told(wanted, lambda going, rows, left: 4 if going > 2 else 2), list[list[int]]()
    found = model.says(pad_prompts([[1]] * 6, 10, 9, 4), 5, 4, {9}, lambda ids: said.append(ids.tolist()))
    assert found == [[], [1, 4], [], [2, 5, 7, 1], [], [3, 6, 8, 2]]
    assert [tokens for tokens, *_ in model.seen] == [[[1]] * 6, [[9], [1], [2], [3]], [[9], [4], [5], [6]], [[7], [8]]]
    assert said[2] == [9, 9, 9, 7, 9, 8]
    assert model.cache.tolist() == [3, 5]


def test_a_stack_is_told_what_is_left():
    """How many go on, of how many in the batch, for how many tokens at most. No rows leave after the last step."""
    told = []

    def fewer(*given):
        told.append(given)
        return 2

    model = Told([[9, 1, 2], [9, 1, 2], [9, 9, 2]], fewer)
    assert model.says(pad_prompts([[1], [2], [3]], 10, 9, 3), 4, 3, {9}) == [[], [1, 1], [2, 2, 2]]
    assert told == [(2, 3, 2), (2, 2, 1)]
    assert model.cache.tolist() == [1, 2]


def test_a_row_draws_the_same_numbers_whatever_the_others_do():
    """Step n of prompt b draws number b of position n, wherever the prompt ends and whoever has left the batch."""
    sampling, steps = Sampling(1.0, 0, 1.0, 3), 5
    numbers = np.array([[int(1000 * x) for x in uniforms_of(3, step, 3)] for step in range(steps)])

    class Flat(Told):
        def __call__(self, tokens, positions, mask, at):
            return np.zeros((len(self.cache), 1000))

    for length in (1, 5):
        for stop in ((), (numbers[1, 0],), (numbers[0, 1], numbers[2, 0])):
            prompts = pad_prompts([[1] * length, [2], [3, 4]], 1000, 20, steps)
            found = Flat([[0] * 3]).says(prompts, 20, steps, set(stop), None, sampling)
            for row, column in zip(found, numbers.T.tolist(), strict=True):
                ends = [column.index(token) for token in stop if token in column]
                assert row == column[: min(ends, default=steps)]


def test_a_prompt_may_fill_the_context_with_what_it_asks_for():
    prompts = pad_prompts([[9, 0, 9]], 10, 5, 2)
    assert prompts.tokens.tolist() == [[9, 0, 9]]
    with refused("contract/prompt-exceeds-context", "at most 2 tokens"):
        pad_prompts([[1, 2, 3]], 10, 5, 3)
    with refused("contract/prompt-outside-vocabulary", "10"):
        pad_prompts([[10]], 10, 5, 2)

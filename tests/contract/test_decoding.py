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
LOGITS = 2 * np.random.default_rng(5).standard_normal((ROWS, VOCAB))


def uniforms_of(seed: int, position: int, count: int) -> np.ndarray:
    """The stream by numpy's own generator: the top 53 bits, in the middle of their interval."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}:sampling".encode(), digest_size=16).digest(), "little")
    words = np.random.Philox(key=key, counter=position << 192).random_raw(count)
    return np.array([((int(word) >> 11) + 0.5) / 2**53 for word in words])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 7, 1.0), (1.0, 1, 1.0), (1.0, 0, 0.6), (0.7, 9, 0.8), (3.0, 23, 0.99)],
)
@pytest.mark.parametrize(("seed", "position"), [(0, 0), (7, 3), (7, 2000)])
def test_tokens_are_those_of_transformers_warpers(temperature, top_k, top_p, seed, position):
    """Its probabilities after temperature, top-k and top-p; the token where the falling sum passes the number."""
    scores = torch.from_numpy(LOGITS)
    warpers = [TemperatureLogitsWarper(temperature), *([TopKLogitsWarper(top_k)] if top_k else [])]
    for warper in [*warpers, *([TopPLogitsWarper(top_p)] if top_p < 1 else [])]:
        scores = warper(None, scores)
    probabilities = torch.softmax(scores, -1).numpy()
    order = np.argsort(-LOGITS, axis=-1, kind="stable")
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
    """A model that says what it was told: at step n it wants `wanted[n]` of each row."""

    def __init__(self, wanted: list[list[int]]) -> None:
        self.wanted, self.seen = wanted, list[tuple]()

    def __call__(self, tokens, positions, mask, at) -> np.ndarray:
        self.seen.append((tokens.tolist(), positions.tolist(), mask.astype(int).tolist(), at))
        assert tokens.dtype == positions.dtype == np.int32
        return np.eye(10)[self.wanted[len(self.seen) - 1]]


def test_what_is_fed_by_hand():
    """Two prompts, of 3 tokens and of 1: the second is padded by two slots, which nobody sees."""
    model, said = Told([[4, 7], [5, 8], [9, 6]]), list[list[int]]()
    prompts = pad_prompts([[1, 2, 3], [6]], 10, 8, 3)
    found = decode(prompts, 6, 3, Sampling(0.0), {9}, model, lambda ids: said.append(ids.tolist()))
    assert found == [[4, 5], [7, 8, 6]], "the row that has ended keeps neither its stop nor what follows"
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


def test_a_row_that_has_ended_stays_ended_and_the_last_one_ends_it_all():
    model, said = Told([[9, 1], [2, 1], [2, 9], [3, 3]]), list[list[int]]()
    prompts = pad_prompts([[1], [2]], 10, 9, 8)
    found = decode(prompts, 9, 8, Sampling(0.0), {9}, model, lambda ids: said.append(ids.tolist()))
    assert (found, len(model.seen)) == ([[], [1, 1]], 3)
    assert said == [[9, 1], [2, 1]], "the step that ends all has nothing to show"


def test_each_step_has_numbers_of_its_own():
    """Step n draws at position n, wherever the prompt ends."""

    def flat(tokens, positions, mask, at):
        return np.zeros((1, 1000))

    for length in (1, 5):
        prompts = pad_prompts([[1] * length], 1000, 20, 4)
        ids = decode(prompts, 20, 4, Sampling(1.0, 0, 1.0, 3), (), flat)[0]
        assert ids == [int(1000 * uniforms_of(3, step, 1)[0]) for step in range(4)]


def test_a_prompt_may_fill_the_context_with_what_it_asks_for():
    prompts = pad_prompts([[9, 0, 9]], 10, 5, 2)
    assert prompts.tokens.tolist() == [[9, 0, 9]]
    with refused("contract/prompt-exceeds-context", "at most 2 tokens"):
        pad_prompts([[1, 2, 3]], 10, 5, 3)
    with refused("contract/prompt-outside-vocabulary", "10"):
        pad_prompts([[10]], 10, 5, 2)

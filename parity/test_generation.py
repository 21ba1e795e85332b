"""Greedy and sampled tokens: with cache and without, alone and in a batch, in both stacks."""

import numpy as np
import pytest
import torch

from coretrain.errors import UserError
from coretrain.sampling import Sampling
from parity.pair import VARIANTS, make_config, make_pair

PROMPTS = [[5, 9, 2], [17], [1, 2, 3, 4, 5, 6, 7, 8]]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["gpt2-like", "llama-like"])
def pair(request):
    """Both stacks with scrambled weights."""
    return make_pair(make_config(VARIANTS[request.param]))


def without_cache(pair, prompt: list[int], tokens: int) -> list[int]:
    """Greedy decoding by whole forward passes."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            hidden = pair.torch.model(torch.tensor([ids]))
            ids.append(int(pair.torch.model.logits(hidden[:, -1]).argmax()))
    return ids[len(prompt) :]


def test_greedy_tokens_are_those_without_a_cache(pair):
    expected = [without_cache(pair, prompt, 12) for prompt in PROMPTS]
    for stack in pair.stacks:
        assert stack.generate(PROMPTS, 12, GREEDY, ()) == expected
        assert [stack.generate([prompt], 12, GREEDY, ())[0] for prompt in PROMPTS] == expected


def test_sampled_tokens_are_the_same_for_the_same_numbers(pair):
    settings = [Sampling(1.0, 0, 1.0, 3), Sampling(0.8, 5, 1.0, 4), Sampling(1.3, 0, 0.7, 5)]
    for sampling in settings:
        ours, theirs = (stack.generate(PROMPTS, 16, sampling, ()) for stack in pair.stacks)
        assert ours == theirs
    drawn = [pair.torch.generate(PROMPTS, 16, sampling, ()) for sampling in settings]
    assert drawn[0] != drawn[1] != drawn[2]


def test_a_stop_token_ends_its_own_row_alone(pair):
    whole = pair.torch.generate(PROMPTS, 12, GREEDY, ())
    stop = whole[0][4]
    for stack in pair.stacks:
        for got, full in zip(stack.generate(PROMPTS, 12, GREEDY, (stop,)), whole, strict=True):
            assert got == full[: full.index(stop) if stop in full else 12]


def test_streamed_tokens_are_the_returned_ones(pair):
    for stack in pair.stacks:
        seen: list[np.ndarray] = []
        result = stack.generate([PROMPTS[0]], 8, GREEDY, (), seen.append)
        assert [int(ids[0]) for ids in seen] == result[0]


@pytest.mark.parametrize(
    ("prompt", "tokens", "named"), [([], 1, "empty"), ([301], 1, "vocabulary"), ([1], 40, "context")]
)
def test_bad_prompts_are_refused(pair, prompt, tokens, named):
    for stack in pair.stacks:
        with pytest.raises(UserError, match=named):
            stack.generate([prompt], tokens, GREEDY, ())

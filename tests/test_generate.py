"""Generation as a user meets it: limits, bad prompts, streaming. (The tokens themselves are compared in parity/.)"""

import numpy as np
import pytest

from coretrain.errors import UserError
from coretrain.sampling import Sampling
from jaxtrain.generate import cache_slots
from jaxtrain.trainer import Trainer as JaxTrainer
from torchtrain.trainer import Trainer as TorchTrainer


@pytest.fixture(params=[TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def trainer(request, small_config):
    return request.param(small_config())


@pytest.mark.parametrize(
    ("prompts", "tokens", "word"),
    [
        ([[]], 3, "a prompt is empty"),
        ([], 3, "a prompt is empty"),
        ([[1], []], 3, "a prompt is empty"),
        ([[101]], 3, "outside the vocabulary of 101"),
        ([[3, -1]], 3, "outside the vocabulary of 101"),
        ([[1] * 20], 5, "don't fit in model.context = 24: ask for at most 4 tokens"),
    ],
)
def test_bad_prompts_are_refused_in_a_sentence(trainer, prompts, tokens, word):
    with pytest.raises(UserError, match=word):
        trainer.generate(prompts, tokens, Sampling(), ())


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_bad_sampling_is_refused(fields):
    with pytest.raises(UserError):
        Sampling(**fields)


def test_up_to_the_last_slot_of_the_context_and_streamed(trainer):
    steps = []
    found = trainer.generate([[1] * 20, [2]], 4, Sampling(), (), steps.append)
    assert [len(row) for row in found] == [4, 4]
    assert np.array_equal(np.array(steps).T, found)
    assert all(0 <= token < 101 for row in found for token in row), "never a padding row of the vocabulary"


def test_no_tokens_asked_for(trainer):
    assert trainer.generate([[1]], 0, Sampling(), ()) == [[]]


@pytest.mark.parametrize(
    ("needed", "slots"), [(1, 256), (256, 256), (257, 512), (3000, 4096), (5000, 8192), (8192, 8192)]
)
def test_slots_of_the_cache(needed, slots):
    assert cache_slots(needed, 8192) == slots
    assert cache_slots(min(needed, 96), 96) == 96

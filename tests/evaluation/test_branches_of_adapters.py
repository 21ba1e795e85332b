"""Beginnings that are computed once, in models with adapters: the scores are those of a row for each choice."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.evaluation.requests import Continuation
from coretrain.evaluation.scorer import Scorer
from coretrain.tokenizers.registry import named_tokenizer
from jaxtrain.trainer import Trainer as JaxTrainer
from torchtrain.trainer import Trainer as TorchTrainer

STACKS = {"torch": TorchTrainer, "jax": JaxTrainer}
ADAPTERS = {
    "lora": {"adapter__kind": "lora", "adapter__rank": 2},
    "prefix": {"adapter__kind": "prefix"},
    "bottleneck": {"adapter__kind": "bottleneck"},
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_shared_beginnings_with_an_adapter(kind, stack, small_config):
    config = small_config(precision__compute="float64", **ADAPTERS[kind])
    trainer = STACKS[stack](config)
    drawn = np.random.default_rng(1)
    moved = {
        name: tensor + drawn.normal(0, 0.1, tensor.shape) for name, tensor in trainer.export()["parameters"].items()
    }
    trainer.adopt({"parameters": moved}, 0)

    def ids(count):
        return tuple(int(one) for one in drawn.integers(0, 101, count))

    asked = [Continuation(question, ids(3)) for question in (ids(9), ids(7)) for _ in range(3)]
    once, each = (
        Scorer(trainer, config, named_tokenizer("bytes"), shares=shares).score(asked) for shares in (True, False)
    )
    for one, other in zip(once, each, strict=True):
        # measured 4e-15 of sums near -20; a prefix that endings don't see is off by 0.01 and more
        assert abs(one.logprob - other.logprob) < 1e-12
        assert one.greedy == other.greedy

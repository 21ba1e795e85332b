"""Adapters by name over one base: each request is answered by its own, whatever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.adapters.targets import adapter_parameters, with_adapter
from coretrain.contract.sampling import Sampling
from coretrain.inference import engine as module
from coretrain.inference.engine import Engine
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.refusal import refused
from tests.support.requests import large_weights
from torchtrain.trainer import Trainer as TorchTrainer

KINDS = {"low": {"adapter__kind": "lora", "adapter__rank": 4}, "ahead": {"adapter__kind": "prefix"}}


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_each_request_is_answered_by_its_own_adapter(small_config, make, monkeypatch):
    """Turns of two steps, so that rows of three groups change places while others are in the middle."""
    monkeypatch.setattr(module, "TURN", 2)
    base, rng = small_config(model__context=64), np.random.default_rng(0)
    weights, right = large_weights(base), {}
    prompts = [[5, 9, 2, 7], [88] * 20, [1]]
    adapters = {}
    for name, fields in KINDS.items():
        config = small_config(model__context=64, adapter__name=name, adapter__virtual_tokens=3, **fields)
        tensors = {row.name: rng.normal(0, 0.5, row.shape).astype(np.float32) for row in adapter_parameters(config)}
        adapters[name] = config, tensors
        whole = make(config, with_adapter(config, weights) | tensors)
        right[name] = [whole.generate([prompt], 8, Sampling(0), ())[0] for prompt in prompts]
    stack = make(base, weights)
    right[None] = [stack.generate([prompt], 8, Sampling(0), ())[0] for prompt in prompts]
    assert len({str(answers) for answers in right.values()}) == 3
    with Engine(stack, rows=5) as engine:
        for config, tensors in adapters.values():
            engine.add_adapter(config, tensors)
        asked = [(name, number) for number in range(3) for name in (None, "low", "ahead")] * 2
        handles = [engine.submit(prompts[number], Sampling(0), 8, adapter=name) for name, number in asked]
        for (name, number), handle in zip(asked, handles, strict=True):
            assert handle.wait(120).ids == right[name][number], (name, number, handle.answer.error)
        with refused("inference/adapter-unknown", "high", "low, ahead"):
            engine.submit([1], Sampling(0), 1, adapter="high")
        with refused("adapters/model-differs", "model.width"):
            other = small_config(model__context=64, model__width=64, **KINDS["low"])
            engine.add_adapter(other, {row.name: np.zeros(row.shape, np.float32) for row in adapter_parameters(other)})
    assert [stack.generate([prompt], 8, Sampling(0), ())[0] for prompt in prompts] == right[None], "left as it was"


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_an_adapter_that_the_model_brings_is_not_the_bases(small_config, make):
    """A model opened by an adapter's config, as with several adapters: asked by no name it is the base."""
    base, config = small_config(), small_config(adapter__name="low", **KINDS["low"])
    rng, weights = np.random.default_rng(0), large_weights(base)
    tensors = {row.name: rng.normal(0, 0.5, row.shape).astype(np.float32) for row in adapter_parameters(config)}
    right = make(base, weights).generate([[5, 9, 2]], 6, Sampling(0), ())[0]
    with Engine(make(config, with_adapter(config, weights) | tensors), rows=2) as engine:
        engine.add_adapter(config, tensors)
        assert engine.submit([5, 9, 2], Sampling(0), 6).wait(60).ids == right
        assert engine.submit([5, 9, 2], Sampling(0), 6, adapter="low").wait(60).ids != right

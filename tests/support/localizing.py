"""What the localizer's tests share: a correct pair, compiled once, and two bugs."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F

from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.search import jax_recorder, localized_tap
from parity.pair import (
    SMALL,
    VARIANTS,
    make_config,
    perturbed,
)
from torchtrain.trainer import Trainer as TorchTrainer


def alone(tmp_path_factory):
    """Nothing that is compiled here outlasts the session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SMALL, "data.cache", str(tmp_path_factory.mktemp("cache")))
        yield


GPT, LLAMA = "gpt2-like", "llama-like"


@functools.cache
def sides(variant):
    """(config, weights, a correct JAX trainer, its recorder): compiled once."""
    config = make_config(VARIANTS[variant])
    weights = perturbed(config)
    stack = JaxTrainer(config, weights)
    return config, weights, stack, jax_recorder(stack)


def found(variant, **options):
    """The tap that the localizer names with torch as it is now."""
    config, weights, stack, recorder = sides(variant)
    return localized_tap(config, weights, TorchTrainer(config, weights), stack, recorder=recorder, **options)


def torch_gelu_of_ten_digits(patch):
    def gelu(x, approximate):
        return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))

    patch.setattr(F, "gelu", gelu)


def torch_gelu_erf_in_the_second_block(patch):
    original, calls = F.gelu, []

    def gelu(x, approximate):
        calls.append(0)
        return original(x, approximate="none" if len(calls) % 2 == 0 else approximate)

    patch.setattr(F, "gelu", gelu)

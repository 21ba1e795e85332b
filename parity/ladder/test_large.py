"""One larger and odd model, in float64: each stack, with the kernel that a run would take, against formulas in numpy.

What is wrong only in a later layer, beyond a width, beyond some hundred tokens, or where a size isn't a multiple of
another, is out of sight of two layers and 40 tokens.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

from coretrain.data.batch import Batch
from parity.errors import nrel, worst_tensor
from parity.gates import GRADIENTS, LOGITS, LOSS, NORM
from parity.oracles.gpt import exact, losses
from parity.outcomes import hold
from parity.pair import (
    BASIC,
    GPT2,
    LLAMA,
    batches,
    make_config,
    noise_only,
    perturbed,
)
from parity.probes.sides import SIDES, gradients_of, make

SIZES = {
    "model.layers": 3,
    "model.heads": 9,
    "model.kv_heads": 3,
    "model.width": 288,
    "model.mlp_width": 301,
    "model.context": 530,
    "model.vocab": 613,
    "train.batch_size": 2,
    "train.accumulation": 2,
    "execution.loss_chunk": 331,
    "execution.vocab_multiple": 13,
    "execution.attention": "auto",
}
FORMS = {"gpt2-like": GPT2, "llama-like": LLAMA | {"model.residual_dropout": 0.2}}
SAMPLES = ([530], [1, 200, 300, 29])
"""Tokens of the samples of each packed row: one as long as the row, and several."""
UPDATE = 4_321


@functools.cache
def known(variant):
    """Config, weights, batch and what the formulas make of them: packed and weighted rows in one of the variants."""
    config = make_config(FORMS[variant] | SIZES)
    weights, batch = perturbed(config), batches(config, 1)[0]
    labels = batch.labels.copy()
    labels[0, 100:400] = -100  # the micro-batches have unequal numbers of targets
    if variant == "llama-like":
        positions = np.stack([np.concatenate([np.arange(n) for n in row]) for row in SAMPLES]).astype(np.int32)
        counts = np.random.default_rng(1).uniform(0, 2, labels.shape).astype(np.float32)
        batch = Batch(batch.tokens, labels, positions, counts)
    else:
        batch = Batch(batch.tokens, labels)
    return config, weights, batch, exact(config.model, weights, batch, config.train.seed, UPDATE)


@pytest.mark.parametrize("variant", BASIC[:2])
@pytest.mark.parametrize("side", SIDES)
def test_a_larger_model(variant, side):
    config, weights, batch, expected = known(variant)
    stack = make(SIDES[side], config, weights, frozenset())
    loss, norm = stack.gradients(batch, UPDATE, 1.0)
    where = f"{side}, {variant}, 3 layers, 530 tokens"
    hold(LOSS, abs(loss - expected.loss), where)
    hold(NORM, abs(norm - expected.norm) / expected.norm, where)
    error, name = worst_tensor(gradients_of(SIDES[side], stack), expected.gradients, noise_only(config))
    hold(GRADIENTS, error, f"{name}, {where}")
    if side == "torch":  # JAX's chunks of log-probabilities are cut along the row
        without = exact(config.model, weights, batch)
        hold(LOGITS, nrel(stack.token_logprobs(batch), -losses(without.logits, batch.labels)[0]), where)

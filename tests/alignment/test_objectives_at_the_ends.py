"""Objectives where numbers run out: ratios beyond all sense, answers that are certain, pairs that are level."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtrain.objectives.policy as jax_policy
import jaxtrain.objectives.preferences as jax_preferences
import torchtrain.objectives.policy as torch_policy
import torchtrain.objectives.preferences as torch_preferences
from coretrain.config.align import AlignConfig

STACKS = pytest.mark.parametrize("stack", ["torch", "jax"])
ROOMS = {"torch": (torch_policy, torch_preferences), "jax": (jax_policy, jax_preferences)}
MOST = math.exp(20)
"""Largest ratio, and largest exp(-d) of k3: beyond it float32 has no number, and float64 no sense."""


def array(stack: str, numbers: object):
    """Numbers as a stack has them, in float64."""
    given = np.asarray(numbers)
    return torch.from_numpy(given) if stack == "torch" else jnp.asarray(given)


@STACKS
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_a_ratio_beyond_all_numbers_is_cut(stack, ratio):
    """e^1000 is infinite, and infinite less infinite no number. Of a negative advantage the term isn't clipped."""
    logs, counts = array(stack, [[1000.0, 1000.0], [-1000.0, -1000.0]]), array(stack, np.ones((2, 2), bool))
    answers = SimpleNamespace(log_ratio=logs, counts=counts, share=array(stack, np.full((2, 2), 0.25)))
    batch = SimpleNamespace(planes={"advantages": array(stack, np.full((2, 2), -1.0))})
    a = AlignConfig(ratio=ratio)
    ratios, loss, _ = ROOMS[stack][0].clipped_policy(a, batch, answers)
    assert np.allclose(np.asarray(ratios), [[MOST, MOST], [1 / MOST, 1 / MOST]], rtol=1e-14)
    assert float(loss) == pytest.approx(MOST / 2 + (1 - a.clip_low) / 2, rel=1e-14)


@STACKS
def test_an_estimate_of_the_kl_beyond_all_numbers_is_cut(stack):
    """k3 of a token that the reference takes for e^1000 times as likely."""
    found = ROOMS[stack][0].estimated_kl("k3", array(stack, [[-1000.0, 1000.0]]))
    assert np.allclose(np.asarray(found), [[MOST - 1 - 1000, 999.0]], rtol=1e-14)


@STACKS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_odds_of_a_certain_answer_are_those_of_the_next_smaller_number(stack, dtype):
    """p = 1 has infinite odds, and the difference of two such no number. log odds of 1 - eps: -log(eps)."""
    logprobs, share = array(stack, np.array([[0.0, -1e-30]], dtype)), array(stack, np.ones((1, 2), dtype))
    found = np.asarray(ROOMS[stack][1]._log_odds(logprobs, share))
    assert np.allclose(found, -math.log(np.finfo(dtype).eps), rtol=1e-6)


@STACKS
def test_a_level_pair_is_half_right(stack):
    """As at a run's first update, where policy and reference are one: an accuracy of 0 would say that all are wrong."""
    room = ROOMS[stack][1]
    found = room._right(room.Pairs(array(stack, [[1.0, 1.0, 2.0]]), array(stack, [[1.0, 2.0, 1.0]])))
    assert np.asarray(found).tolist() == [[0.5, 0.0, 1.0]]

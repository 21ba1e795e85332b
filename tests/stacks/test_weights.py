"""Weights of targets in both stacks' loss, against the plain weighted formula, and in whole updates."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import jaxtrain.loss
import jaxtrain.parallel.trainer
import torchtrain.loss
import torchtrain.parallel.trainer
from coretrain.data.batch import IGNORED
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.pair import jax_gradients, jax_logits, noise_only, torch_gradients
from tests.support.batches import random_text
from torchtrain.trainer import Trainer as TorchTrainer

B, T, D, V, ROWS = 3, 11, 8, 37, 48
CHUNKS = pytest.mark.parametrize("chunk", [7, 1000])
STACKS = pytest.mark.parametrize("stack", ["torch", "jax"])


def problem():
    """Hidden states, a head whose padding rows would win every softmax, labels of which some are ignored, weights of
    which some are 0."""
    rng = np.random.default_rng(0)
    hidden, head = rng.standard_normal((B, T, D)), rng.standard_normal((ROWS, D))
    head[V:] = 100 * np.sign(hidden[0, 0])
    labels, weights = rng.integers(0, V, (B, T)), rng.uniform(0, 3, (B, T))
    labels[0, :4] = labels[2, -1] = IGNORED
    weights[1] = weights[:, 5] = 0
    return hidden, head, labels, weights


def ours(stack, hidden, head, labels, weights, chunk, scale=0.01):
    """Loss and both gradients."""
    if stack == "torch":
        given = [torch.from_numpy(array).requires_grad_() for array in (hidden, head)]
        counts = None if weights is None else torch.from_numpy(weights)
        one = torch.tensor(scale, dtype=given[0].dtype)
        loss = torchtrain.loss.cross_entropy(*given, torch.from_numpy(labels), V, chunk, one, counts)
        loss.backward()
        return loss.detach().numpy(), given[0].grad.numpy(), given[1].grad.numpy()
    counts = None if weights is None else jnp.asarray(weights)

    def loss(hidden, head):
        return jaxtrain.loss.cross_entropy(
            hidden, head, jnp.asarray(labels), V, chunk, hidden.dtype.type(scale), counts
        )

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, head)
    return value, *map(np.asarray, gradients)


def plain(stack, hidden, head, labels, weights, scale=0.01):
    """The same by each framework's own cross-entropy, times the weights."""
    if stack == "torch":
        given = [torch.from_numpy(array).requires_grad_() for array in (hidden, head)]
        logits = given[0] @ given[1][:V].T
        each = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten(), reduction="none")
        loss = (each * torch.from_numpy(weights).flatten()).sum() * scale
        loss.backward()
        return loss.detach().numpy(), given[0].grad.numpy(), given[1].grad.numpy()

    def loss(hidden, head):
        valid = labels != IGNORED
        each = optax.softmax_cross_entropy_with_integer_labels(hidden @ head[:V].T, np.where(valid, labels, 0))
        return (jnp.where(valid, each, 0) * weights).sum() * scale

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, head)
    return value, *map(np.asarray, gradients)


@STACKS
@CHUNKS
def test_each_targets_term_is_multiplied(stack, chunk):
    """Loss and gradients. Floor 4.4e-16; the weights of the targets beside change them by 6e-2 to 1e-1."""
    hidden, head, labels, weights = problem()
    found, wanted = ours(stack, hidden, head, labels, weights, chunk), plain(stack, hidden, head, labels, weights)
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).max() < 1e-14
    assert not found[2][V:].any(), "padding rows have no gradient"
    # in float32, floor 1.2e-7 of a loss of 2
    narrow = ours(stack, *(a.astype(np.float32) for a in (hidden, head)), labels, weights.astype(np.float32), chunk)
    for one, other in zip(narrow, wanted, strict=True):
        assert one.dtype == np.float32
        assert np.abs(one - other).max() < 2e-6


@STACKS
@CHUNKS
def test_weights_of_one_are_none(stack, chunk):
    """To rounding: floor 0, the same bits."""
    hidden, head, labels, weights = problem()
    ones = np.ones_like(weights)
    found, wanted = (ours(stack, hidden, head, labels, given, chunk) for given in (ones, None))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-15)
    count = count_of(stack, labels, ones)
    assert count == count_of(stack, labels, None) == (labels != IGNORED).sum()


def count_of(stack, labels, weights):
    if stack == "torch":
        given = torch.from_numpy(labels), None if weights is None else torch.from_numpy(weights)
        return torchtrain.loss.count_targets(*given).item()
    return float(jaxtrain.loss.count_targets(labels, weights))


@STACKS
def test_a_target_of_weight_0_counts_for_nothing(stack):
    """Bit for bit as if its label were ignored: in loss, gradients and the number of targets."""
    hidden, head, labels, weights = problem()
    without = np.where(weights == 0, IGNORED, labels)
    assert (without != labels).sum() > B
    found, wanted = (ours(stack, hidden, head, given, weights, 7) for given in (labels, without))
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one, other)
    assert not found[1][weights == 0].any()
    assert count_of(stack, labels, weights) == count_of(stack, without, weights)
    # and what an ignored label weighs is of no account either
    assert count_of(stack, labels, weights) == pytest.approx(weights[labels != IGNORED].sum(), rel=1e-15)
    other = np.where(labels == IGNORED, 1e6, weights)
    for one, two in zip(found, ours(stack, hidden, head, labels, other, 7), strict=True):
        assert np.array_equal(one, two)


@STACKS
def test_a_batch_whose_weights_are_all_0_is_zero_and_not_nan(stack):
    hidden, head, labels, weights = problem()
    found = ours(stack, hidden, head, labels, np.zeros_like(weights), 7)
    assert not any(value.any() for value in map(np.asarray, found))
    assert count_of(stack, labels, np.zeros_like(weights)) == 1


def weighted(config):
    """A batch whose micro-batches have unequal numbers of targets and unequal weights."""
    batch = random_text(config)
    labels = batch.labels.copy()
    labels[0, :9] = IGNORED
    weights = np.random.default_rng(5).uniform(0, 2, labels.shape).astype(np.float32)
    weights[:2] *= 3
    weights[3, 4:9] = 0
    return replace(batch, labels=labels, weights=weights)


def test_a_whole_update_is_the_same_in_both_stacks_and_however_it_is_cut(small_config):
    """Floors: losses 1.9e-16, gradients 9.6e-16 and steps 6.3e-14 of their norm.

    A mean of micro-batches' own means changes the loss by 1.8e-3 of it, the number of targets for the sum of their
    weights by 2.5e-3, and weights that are added up in float32 by 6e-8, in each stack differently.
    """
    seen = {}
    for accumulation in (1, 2):
        config = small_config(
            precision__compute="float64", train__accumulation=accumulation, model__residual_dropout=0.1
        )
        batch = weighted(config)
        for make in (TorchTrainer, JaxTrainer):
            trainer = make(config)
            loss, norm = trainer.gradients(batch, 3, 1.0)
            gradients = (torch_gradients if make is TorchTrainer else jax_gradients)(trainer)
            if make is JaxTrainer:
                logits = jax_logits(trainer, batch.tokens, 3)
                each = optax.softmax_cross_entropy_with_integer_labels(logits, np.maximum(batch.labels, 0))
                counts = np.where(batch.labels == IGNORED, 0, batch.weights.astype(np.float64))
                wanted = float((np.asarray(each) * counts).sum() / counts.sum())
            start = {name: value.copy() for name, value in trainer.export()["parameters"].items()}
            trainer.apply(1e-3, 0.5, 0)
            steps = {name: value - start[name] for name, value in trainer.export()["parameters"].items()}
            seen[make.name, accumulation] = loss, norm, gradients, steps
    _, norm, gradients, steps = seen["torch", 1]
    for found in seen.values():
        assert abs(found[0] - wanted) < 1e-13 * wanted
        assert abs(found[1] - norm) < 1e-13 * norm
        for name in gradients.keys() - noise_only(config):
            for one, other in ((found[2], gradients), (found[3], steps)):
                assert np.linalg.norm(one[name] - other[name]) < 1e-12 * np.linalg.norm(other[name]), name


@pytest.mark.parametrize("accumulation", [1, 2])
@STACKS
def test_a_trainer_that_could_share_the_run_does_the_same(small_config, stack, accumulation):
    """Alone. Floors 0 of the numbers and 6.5e-17 of a gradient's norm."""
    config = small_config(precision__compute="float64", train__accumulation=accumulation)
    batch, found = weighted(config), []
    own, module = (TorchTrainer, torchtrain) if stack == "torch" else (JaxTrainer, jaxtrain)
    for make in (own, module.parallel.trainer.ParallelTrainer):
        trainer = make(config)
        loss, norm = trainer.gradients(batch, 0, 1.0)
        gradients = (torch_gradients if stack == "torch" else jax_gradients)(trainer)
        found.append((loss, norm, trainer.evaluate(batch), gradients))
    (*numbers, gradients), (*others, shared) = found
    assert others == pytest.approx(numbers, rel=1e-13)
    for name in gradients.keys() - noise_only(config):
        assert np.linalg.norm(shared[name] - gradients[name]) < 1e-12 * np.linalg.norm(gradients[name]), name

"""Log-probabilities of labels in both stacks, in float64, against log-softmax of whole logits; and their gradients."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxtrain.model
import jaxtrain.objective
import jaxtrain.parallel.trainer
import torchtrain.model
import torchtrain.objective
import torchtrain.parallel.trainer
from coretrain.contract.parameters import initial_parameters, padded_vocab
from coretrain.data.batch import IGNORED, Batch
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.batches import random_text
from torchtrain.loss import _chunks
from torchtrain.trainer import Trainer as TorchTrainer

DOUBLE = {"precision__compute": "float64", "train__batch_size": 5, "train__accumulation": 1}
LLAMA = {
    "model__norm": "rmsnorm", "model__position": "rope", "model__mlp": "swiglu", "model__kv_heads": 2,
    "model__bias": "false", "model__tied": "false",
}  # fmt: skip
MAKERS = {"torch": TorchTrainer, "jax": JaxTrainer}
SHARING = {"torch": torchtrain.parallel.trainer.ParallelTrainer, "jax": jaxtrain.parallel.trainer.ParallelTrainer}
STACKS = pytest.mark.parametrize("stack", MAKERS)


def made(stack, config, makers=MAKERS):
    """A trainer whose logits are far from equal: with the weights of a new model all words are as likely."""
    rng = np.random.default_rng(0)
    start = initial_parameters(config.model, 3)
    weights = {name: 3 * (value + 0.1 * rng.standard_normal(value.shape)) for name, value in start.items()}
    return makers[stack](config, weights)


def some_ignored(batch: Batch) -> Batch:
    """A third of the labels ignored, among them all of one row."""
    labels = batch.labels.copy()
    labels[:, ::3] = labels[2] = IGNORED
    return replace(batch, labels=labels)


def packed(batch: Batch) -> Batch:
    """Rows of samples, of lengths that differ from row to row."""
    lengths = ((1, 9, 14), (24,), (5, 5, 5, 9), (23, 1), (2, 11, 11))
    rows = [np.concatenate([np.arange(n) for n in row]) for row in lengths]
    return replace(some_ignored(batch), positions=np.array(rows, np.int32))


def of_logits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """log softmax(logits)[label] by the plain formula; 0 where there is no target."""
    peak = logits.max(-1, keepdims=True)
    normal = np.log(np.exp(logits - peak).sum(-1, keepdims=True)) + peak
    found = np.take_along_axis(logits - normal, np.where(labels == IGNORED, 0, labels)[..., None], -1)[..., 0]
    return np.where(labels == IGNORED, 0, found)


def jax_logits(model, batch):
    return model.logits(model(batch.tokens, None, batch.positions))


def whole_logits(trainer, batch):
    """Logits [B, T, V] of all positions at once."""
    model = trainer.whole_model()
    if trainer.name == "jax":
        graph, state = nnx.split(model)
        return np.asarray(jax.jit(lambda state, batch: jax_logits(nnx.merge(graph, state), batch))(state, batch))
    with torch.no_grad():
        ids = batch.map(lambda array: torch.from_numpy(array).long())
        return model.logits(model(ids.tokens, None, ids.positions)).numpy()


@STACKS
@pytest.mark.parametrize("rows", [some_ignored, packed], ids=["text", "packed"])
@pytest.mark.parametrize("form", [{}, LLAMA], ids=["tied", "untied"])
def test_they_are_those_of_the_whole_logits(small_config, stack, form, rows):
    """In chunks that are no part of a row, in micro-batches of which the last is short; and in one chunk, larger than
    all rows, against a head with rows of padding.

    Floor 5.1e-14 of numbers up to 30; a label or a position beside the right one is off by 1 or more.
    """
    in_parts = {"train__batch_size": 4, "train__accumulation": 2, "execution__loss_chunk": 10}
    for more, head in ((in_parts | {"execution__vocab_multiple": 1}, 101), ({"execution__loss_chunk": 1000}, 128)):
        config = small_config(**DOUBLE | form | more)
        assert padded_vocab(config.model, config.execution.vocab_multiple) == head
        trainer, batch = made(stack, config), rows(random_text(config, 5))
        found, wanted = trainer.token_logprobs(batch), of_logits(whole_logits(trainer, batch), batch.labels)
        assert (found.shape, found.dtype) == ((5, 24), np.float64)
        assert np.abs(found - wanted).max() < 1e-12
        assert not found[batch.labels == IGNORED].any()
        assert (found[batch.labels != IGNORED] < 0).all()
        # floor 4.4e-16; one target more or less is 1e-2
        total = trainer.evaluate(batch)
        assert abs(found.sum() + total) < 1e-13 * total


@STACKS
def test_hundreds_of_positions_in_one_chunk(small_config, stack):
    """384 of them, as a real batch has and more. Floor 3.6e-15; a label beside the right one is off by 1 or more."""
    config = small_config(**DOUBLE | {"train__batch_size": 16}, execution__loss_chunk=1000)
    trainer, batch = made(stack, config), random_text(config, 16)
    found, wanted = trainer.token_logprobs(batch), of_logits(whole_logits(trainer, batch), batch.labels)
    assert np.abs(found - wanted).max() < 1e-12


def test_a_process_looks_labels_up_in_its_own_columns():
    """The second of two that share a head of 16 rows, with 400 positions: 8 to 15 are its labels 0 to 7."""
    labels = torch.arange(400) % 16
    mine = SimpleNamespace(index=1)
    (found,) = _chunks(torch.zeros(400, 4), torch.zeros(8, 4), labels, 14, 1000, mine, 1.0)
    part, logits, label, here = found
    assert (part.start, part.stop) == (0, 400)
    assert torch.equal(here.squeeze(1), labels >= 8)
    assert torch.equal(label[here], labels[labels >= 8] - 8)
    assert (logits[:, 6:] < -1e30).all()  # of 14 words it has 8 to 13
    assert not logits[:, :6].any()


def test_both_stacks_give_the_same(small_config):
    """Floor 6.8e-14 of numbers up to 30."""
    config = small_config(**DOUBLE, **LLAMA, execution__loss_chunk=7)
    batch = packed(random_text(config))
    ours, theirs = (made(stack, config).token_logprobs(batch) for stack in MAKERS)
    assert np.abs(ours - theirs).max() < 1e-12


@pytest.mark.parametrize("form", [{}, LLAMA], ids=["tied", "untied"])
@STACKS
def test_a_trainer_that_could_share_the_run_gives_the_same(small_config, stack, form):
    """Alone: what is padded for others is cut off again. Floors 8.9e-15 of numbers up to 30, and 0 of their sum."""
    more = {"train__batch_size": 4, "train__accumulation": 2, "execution__loss_chunk": 7}
    config = small_config(**DOUBLE | form | more)
    batch = packed(random_text(config, 5))
    ours, shared = made(stack, config), made(stack, config, SHARING)
    found, wanted = shared.token_logprobs(batch), ours.token_logprobs(batch)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    assert np.abs(found - wanted).max() < 1e-12
    assert abs(shared.evaluate(batch) / ours.evaluate(batch) - 1) < 1e-13


def test_they_are_without_dropout(small_config):
    config = small_config(**DOUBLE, model__residual_dropout=0.5)
    batch = random_text(config)
    for stack in MAKERS:
        trainer = made(stack, config)
        bare = made(stack, config.changed(model__residual_dropout=0.0))
        assert np.array_equal(trainer.token_logprobs(batch), bare.token_logprobs(batch))


def torch_gradients(trainer, batch, each, compute):
    """Of the sum of `compute`'s log-probabilities times `each`, by canonical name."""
    trainer.model.zero_grad(set_to_none=True)
    ids = batch.map(lambda array: torch.from_numpy(array).long())
    (compute(trainer.whole_model(), trainer.config, ids) * torch.from_numpy(each)).sum().backward()
    return torchtrain.model.canonical_tensors(trainer.config, {n: p.grad for n, p in trainer.model.named_parameters()})


def torch_plain(model, config, ids):
    logits = model.logits(model(ids.tokens, None, ids.positions))
    found = logits.log_softmax(-1).gather(-1, ids.labels.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return found.where(ids.labels != IGNORED, 0)


def jax_gradients(trainer, batch, each, compute):
    """Of the sum of `compute`'s log-probabilities times `each`, by canonical name."""

    def total(params):
        return (compute(nnx.merge(trainer.programs.graph, params), trainer.config, batch) * each).sum()

    return jaxtrain.model.canonical_tensors(trainer.config, jax.jit(jax.grad(total))(trainer.params))


def jax_plain(model, config, batch):
    each, labels = jax.nn.log_softmax(jax_logits(model, batch)), np.maximum(batch.labels, 0)
    return jnp.where(batch.labels != IGNORED, jnp.take_along_axis(each, labels[..., None], -1)[..., 0], 0)


@STACKS
@pytest.mark.parametrize(("form", "chunk"), [({}, 7), (LLAMA, 1000)], ids=["tied, in chunks", "untied, at once"])
def test_their_gradients_are_the_plain_formulas(small_config, stack, form, chunk):
    """Each position's with a factor of its own, as in policy gradients: floor 2.8e-15 of a tensor's norm.

    A factor that belongs to the position beside is 1 of it, a padding row that leaks 1e-2.
    """
    config = small_config(**DOUBLE, **form, execution__loss_chunk=chunk)
    trainer, batch = made(stack, config), packed(random_text(config))
    each = np.random.default_rng(4).standard_normal(batch.labels.shape)
    if stack == "torch":
        found = torch_gradients(trainer, batch, each, torchtrain.objective.label_logprobs)
        wanted = torch_gradients(trainer, batch, each, torch_plain)
    else:
        found = jax_gradients(trainer, batch, each, jaxtrain.objective.label_logprobs)
        wanted = jax_gradients(trainer, batch, each, jax_plain)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.linalg.norm(found[name] - value)
        if name.endswith("attention.k.bias"):  # softmax cancels it where positions are learned: what is left is noise
            assert error < 1e-10
            continue
        assert error < 1e-12 * np.linalg.norm(value), name

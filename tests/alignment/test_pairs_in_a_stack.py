"""Preferences through a stack's own objective: known losses at the start, and packings that change nothing."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import jaxtrain.data
import torchtrain.data
from coretrain.alignment.pairs import Pairs
from coretrain.contract.parameters import initial_parameters
from coretrain.data.batch import batch_hash
from coretrain.data.batches import updates_of
from tests.support.preferring import many, many_labels, opened
from torchtrain.trainer import Trainer

ROWS = 24


def trained(folder, objective: str, context: int, cut: bool = False):
    """A stack in float64, and a source whose batch is the whole training split; `cut` into micro-batches of a row."""
    folder.mkdir()
    rows = many_labels(ROWS) if objective == "kto" else many(ROWS)
    shape = {"model__context": 64, "data__row_tokens": context, "precision__compute": "float64"}
    more = {"data__format": "labels" if objective == "kto" else "pairs", "train__objective": objective}
    if objective == "reward":
        more["model__score_head"] = "true"
    _, data = opened(folder, rows, **shape, **more)
    windows = data.parts[0].train.windows(context)
    sizes = {"train__batch_size": windows, "train__accumulation": windows if cut else 1}
    config, data = opened(folder, rows, **shape, **more, **sizes)
    stack = Trainer(config, initial_parameters(config.model, 1))
    reference = Trainer(config, initial_parameters(config.model, 2)) if objective != "kto" else stack
    rows_of = functools.partial(stack.batches, data)
    source = Pairs(rows_of, data, config, stack.measure, reference.token_logprobs, stack.token_logprobs)
    return stack, source, updates_of(data, config)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "reward"])
def test_packings_and_micro_batches_change_nothing(objective, tmp_path):
    """Short rows and long ones, one micro-batch and several: the same loss, norm and figures over the same pairs."""
    found = {}
    for context, cut in ((22, False), (22, True), (60, False)):
        name = f"{context}-{cut}"
        stack, source, _ = trained(tmp_path / name, objective, context, cut)
        loss, norm = stack.gradients(next(source.batches(0, 1)), 0, 1.0)
        found[name] = np.array([loss, norm, *stack.more])
    first, *others = found.values()
    for other in others:
        # measured at most 4e-16; a pair weighed by its row is 1e-2 and more
        assert np.abs(other - first).max() <= 1e-13 * np.abs(first).max(), found


def test_losses_at_the_start_are_known(tmp_path):
    """Policy = reference: DPO's loss is ln 2, KTO's 1/2 and its baseline 0; nothing is preferred yet."""
    stack, source, _ = trained(tmp_path / "kto", "kto", 40)
    batch = next(source.batches(0, 1))
    assert not batch.planes["kl_baseline"].any()
    loss, _ = stack.gradients(batch, 0, 1.0)
    assert loss == pytest.approx(0.5, abs=1e-12)  # a mean of 19 halves
    loss, figures = source.evaluate()
    assert loss == pytest.approx(0.5, abs=1e-12)
    assert figures["kl"] == 0
    stack, source, updates = trained(tmp_path / "dpo", "dpo", 40)
    reference = stack.token_logprobs
    source = Pairs(functools.partial(stack.batches, source.data), source.data, stack.config, stack.measure, reference)
    loss, _ = stack.gradients(next(source.batches(0, 1)), 0, 1.0)
    assert loss == pytest.approx(math.log(2), abs=1e-12)  # a mean of 19 logarithms
    loss, figures = source.evaluate()
    assert loss == pytest.approx(math.log(2), abs=1e-12)
    assert figures["accuracy"] == 0.5
    assert updates.batch_size > 1


def test_both_loaders_give_the_same_rows(tmp_path):
    """Planes and segments too, from the middle."""
    config, data = opened(tmp_path, many(ROWS), model__context=40, train__updates=6)
    hashes = {
        loader.__module__: [batch_hash(batch) for batch in loader(data, config, 2)]
        for loader in (torchtrain.data.train_batches, jaxtrain.data.train_batches)
    }
    plain = [batch_hash(updates_of(data, config).batch(update)) for update in range(2, 6)]
    assert all(found == plain for found in hashes.values()), hashes


def test_a_gradient_step_prefers_what_was_chosen(tmp_path):
    """The validation's loss falls and its margin rises, as the sign of a pair says."""
    stack, source, _ = trained(tmp_path / "dpo", "dpo", 40)
    source = Pairs(
        functools.partial(stack.batches, source.data),
        source.data,
        stack.config,
        stack.measure,
        Trainer(stack.config, initial_parameters(stack.config.model, 1)).token_logprobs,
    )
    before, _ = source.evaluate()
    for update, batch in enumerate(source.batches(0, 6)):
        _, norm = stack.gradients(batch, update, 1.0)
        stack.apply(1e-2, 1.0 / max(norm, 1.0), update)
    after, figures = source.evaluate()
    assert after < before
    assert figures["accuracy"] == 1
    assert figures["margin"] > 0

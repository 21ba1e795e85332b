"""Float32 over 200 updates: how far apart the stacks drift, in units of what one bit of the initial weights does."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from parity.errors import displacement
from parity.gates import YARDSTICK
from parity.outcomes import facts, hold
from parity.pair import (
    BASIC,
    VARIANTS,
    WEIGHTS,
    make_config,
    shared,
)
from parity.probes.lower import moved, train
from torchtrain.trainer import Trainer as TorchTrainer

pytestmark = pytest.mark.whole


def in_float32(variant):
    """A variant as a run would take it."""
    return make_config(VARIANTS[variant], precision__compute="float32", execution__attention="auto")


@functools.cache
def runs(variant):
    """Losses and final parameters of torch, of JAX, and of torch from weights 1 ULP away."""
    config = in_float32(variant)
    pair = shared(config)
    start = WEIGHTS["initial"](config)
    pair.reset(start)
    return start, pair.excluded, [train(s, config) for s in (*pair.stacks, TorchTrainer(config, moved(start)))]


@pytest.mark.parametrize("variant", BASIC)
def test_the_stacks_drift_apart_no_faster_than_one_bit_does(variant):
    """Key biases without a gradient are apart: Adam makes whole steps of their noise."""
    start, apart, ((ours, at), (theirs, jax_at), (nearby, near)) = runs(variant)
    assert all(losses[-1] < losses[0] - 0.1 for losses in (ours, theirs)), "without learning nothing would drift"
    difference, yardstick = np.abs(ours - theirs), np.abs(ours - nearby)
    row = {"loss_torch": ours, "loss_jax": theirs, "difference": difference, "yardstick": yardstick}
    facts["trajectory"][variant] = {name: curve.tolist() for name, curve in row.items()}
    # a loss is rounded itself, by some units in the last place of its sum, whatever the weights do
    least = 2 * float(np.spacing(np.float32(ours.max())))
    hold(YARDSTICK, float(difference.max() / max(yardstick.max(), least)), f"loss, {variant}")
    error, name = displacement(at, jax_at, start, apart)
    hold(YARDSTICK, error / displacement(at, near, start, apart)[0], f"{name}, {variant}")

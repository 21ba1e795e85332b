"""Float32 over 200 updates: how far apart the stacks drift, in units of what one bit of the initial weights does."""

from __future__ import annotations

import numpy as np
import pytest

from parity.gates import YARDSTICK
from parity.outcomes import facts, hold
from parity.pair import (
    BASIC,
    VARIANTS,
    WEIGHTS,
    make_config,
    shared,
)
from parity.probes.lower import drift, long_runs

pytestmark = pytest.mark.whole


def in_float32(variant):
    """A variant as a run would take it."""
    return make_config(VARIANTS[variant], precision__compute="float32", execution__attention="auto")


@pytest.mark.parametrize("variant", BASIC)
def test_the_stacks_drift_apart_no_faster_than_one_bit_does(variant):
    """Key biases without a gradient are excluded: Adam makes whole steps of their noise."""
    config = in_float32(variant)
    runs = [long_runs(stack, config, WEIGHTS["initial"](config)) for stack in shared(config).stacks]
    losses = np.array([[curve for curve, _ in own] for own in runs])  # by stack, start and update
    assert (losses[..., -1] < losses[..., 0] - 0.1).all(), "without learning nothing would drift"
    between, within = np.abs(losses[0] - losses[1]), np.ptp(losses, axis=1)
    row = {"loss_torch": losses[0, 0], "loss_jax": losses[1, 0]}
    row |= {"difference": min(between, key=np.max), "yardstick": min(within, key=np.max)}
    facts["trajectory"][variant] = {name: curve.tolist() for name, curve in row.items()}
    for name, error in drift(*runs, config).items():
        hold(YARDSTICK, error, f"{name}, {variant}")

"""What the judge keeps of its figures."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from parity import gates, outcomes
from parity.gates import LOGITS
from parity.localize.rows import distance
from parity.outcomes import hold
from parity.probes.budgets import unevenness
from parity.probes.lower import STARTS, drift, starts
from parity.probes.parts import bare
from parity.probes.sides import weights_of
from tests.support.commands import environment


def test_a_nan_is_never_replaced(monkeypatch):
    monkeypatch.setattr(outcomes, "worst", {})
    monkeypatch.setattr(outcomes, "held", {})
    hold(LOGITS, 1e-16, "first")
    with pytest.raises(AssertionError):
        hold(LOGITS, math.nan, "broken")
    hold(LOGITS, 1e-16, "later")
    error, where = outcomes.worst[LOGITS.name]
    assert math.isnan(error)
    assert where == "broken"


def test_one_stack_may_not_be_far_worse_than_the_other():
    """Equal errors are at 1 at most, whatever their size; three times is above the gate's cap."""
    assert unevenness("float16", [1.1, 1.1]) < 1
    assert unevenness("float16", [3.3, 1.1]) > gates.EVEN.cap
    for both in ([math.nan, 1.1], [1.1, math.nan]):  # whichever stack it is in
        assert math.isnan(unevenness("float16", both))


@pytest.mark.whole
def test_a_session_ends_without_a_word_of_the_garbage_collector():
    """Objects that die while the interpreter ends, and make garbage, begin collections among modules already empty."""
    code = """
import parity.plugin, gc, jax, sys
class Late:
    def __del__(self):
        [[] for _ in range(2000)], [dict() for _ in range(2000)]
gc.set_threshold(1, 1, 1)
jax.late, sys.late, gc.late = Late(), Late(), Late()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stderr == ""


def test_infinities_are_equal_where_both_have_them():
    masked = np.array([1.0, -np.inf])
    assert distance(masked, masked) == 0
    assert distance(masked, -masked) == math.inf
    assert distance(np.array([math.nan]), np.array([math.nan])) == math.inf


def test_drift_is_a_bias_and_not_chance():
    """A pair far apart by chance is let through; a bias, a NaN and a bias amid a stack's own noise are not."""
    config = bare(precision__compute="float32")
    weights = weights_of(config, "initial")

    def runs(*at):
        return [(np.full(3, 5 + x), {name: t + np.float64(0.1 + x) for name, t in weights.items()}) for x in at]

    calm = 0, 1e-3, 2e-3, 3e-3
    assert len(starts(weights)) == len(calm) == STARTS
    assert max(drift(runs(*calm), runs(1e-3, 2e-3, 3e-3, 0), config).values()) < 1
    for wrong in ((0.02, 0.021, 0.022, 0.023), (0.02, 0.05, 0.08, 0.09)):
        assert min(drift(runs(*calm), runs(*wrong), config).values()) > gates.YARDSTICK.cap
        assert min(drift(runs(*wrong), runs(*calm), config).values()) > gates.YARDSTICK.cap
    for place in range(STARTS):
        broken = runs(*(math.nan if n == place else x for n, x in enumerate(calm)))
        assert all(math.isnan(error) for error in drift(runs(*calm), broken, config).values())

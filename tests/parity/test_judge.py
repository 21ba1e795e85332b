"""What the judge keeps of its figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity import gates, outcomes
from parity.gates import LOGITS
from parity.localize.rows import distance
from parity.outcomes import hold
from parity.probes.budgets import unevenness


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
    assert unevenness("float16", [1e-3, 1e-3]) < 1
    assert unevenness("float16", [3e-3, 1e-3]) > gates.EVEN.cap
    for both in ([math.nan, 1e-3], [1e-3, math.nan]):  # whichever stack it is in
        assert math.isnan(unevenness("float16", both))


def test_infinities_are_equal_where_both_have_them():
    masked = np.array([1.0, -np.inf])
    assert distance(masked, masked) == 0
    assert distance(masked, -masked) == math.inf
    assert distance(np.array([math.nan]), np.array([math.nan])) == math.inf

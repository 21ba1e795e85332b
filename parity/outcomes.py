"""What a session of the judge has seen: the worst figure of every gate, and what its tests have to show."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity.gates import GATES, RUNGS, Gate


def gates() -> list[Gate]:
    """All gates in the ladder's order: the table's, and the budgets that this session has held."""
    budgets = [gate for gate in held if gate not in GATES]
    return sorted([*GATES, *budgets], key=lambda gate: RUNGS.index(gate.rung))


facts: dict[str, Any] = {"trajectory": {}, "kernels": [], "dtypes": [], "reduced_matmuls": []}
"""What this session's tests have to show beside their gates, for the results file."""
worst: dict[str, tuple[float, str]] = {}
"""The largest error that each gate has seen in this session, and where."""
held: dict[Gate, None] = {}
"""The gates that this session has held, in order."""


def note(gate: Gate, error: float, where: str) -> None:
    """Record an error under its gate."""
    held[gate] = None
    before = worst.get(gate.name, (-1.0, ""))[0]
    if np.isnan(error) or error > before:  # a NaN is never replaced by a number
        worst[gate.name] = error, where


def hold(gate: Gate, error: float, where: str) -> None:
    """Record an error under its gate, and fail above the cap (or where it isn't a number)."""
    note(gate, error, where)
    assert error <= gate.cap, f"{gate.name}: {error:.2e} at {where}, cap {gate.cap:.0e}; look for {gate.catches}"

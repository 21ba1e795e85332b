"""What counts as equal: errors over whole tensors, and gates derived from the measured floor of a correct pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gate:
    """A cap on an error, the floor that was measured under it, and the mistakes that it would let show."""

    name: str
    cap: float
    floor: float
    catches: str


LOGITS = Gate("logits, float64", 1e-13, 4e-15, "a constant wrong in its 11th digit, an epsilon, a shifted mask")
GRADIENTS = Gate("every gradient, float64", 1e-13, 3e-14, "a term left out of one backward pass, a scale, a layout")
LOSS = Gate("loss, float64", 1e-12, 4e-15, "padding in the loss, a mean of means, an ignored label that counts")
NORM = Gate("gradient norm before the clip", 1e-13, 2e-15, "gradients summed for averaged: the clip hides it elsewhere")
UPDATE = Gate("one clipped update, displacement", 1e-11, 5e-14, "clip epsilon, decay on a bias, order of the decay")
TRAJECTORY = Gate("50 updates, displacement", 1e-9, 2e-11, "a schedule off by one, a moment or a count that drifts")
GATES = (LOGITS, GRADIENTS, LOSS, NORM, UPDATE, TRAJECTORY)

worst: dict[str, tuple[float, str]] = {}
"""The largest error that each gate has seen in this session, and where."""


def nrel(a: np.ndarray, b: np.ndarray) -> float:
    """|a - b| / |b| in 2-norms over the whole tensor; 0 where both are zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    difference, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    return 0.0 if difference == 0 else difference / size if size else float("inf")


def key_bias(name: str) -> bool:
    """Softmax cancels a key bias that rotary positions don't turn: its gradient is zero, what is left is rounding."""
    return name.endswith("attention.k.bias")


def worst_tensor(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest nrel of any tensor, key biases apart, and its name."""
    assert ours.keys() == theirs.keys()
    return max((nrel(ours[name], theirs[name]), name) for name in ours if not key_bias(name))


def displacement(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]
) -> tuple[float, str]:
    """The largest nrel of the way that any parameter has come from `start`."""
    moved = [{name: np.asarray(t[name], np.float64) - start[name] for name in start} for t in (ours, theirs)]
    return worst_tensor(*moved)


def hold(gate: Gate, error: float, where: str) -> None:
    """Record an error under its gate, and fail above the cap."""
    if error >= worst.get(gate.name, (-1.0, ""))[0]:
        worst[gate.name] = error, where
    assert error <= gate.cap, f"{gate.name}: {error:.2e} at {where}, cap {gate.cap:.0e}; it would be {gate.catches}"

"""What to do about an update before it is applied: non-finite values, spikes of loss or gradient norm.

On a rollback the trainer goes back to its newest checkpoint and past the data up to the bad batch. `roll_back_to` then
gives the windows of that checkpoint back, but not the memory of rollbacks, which is what ends a run that can't get on.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from coretrain.config.training import HealthConfig

Action = Literal["apply", "skip", "stop", "rollback"]
SIGMA_FLOOR = 1e-3
"""Smallest standard deviation, relative to the mean: a steady series would else call its own rounding a spike."""


@dataclass(frozen=True)
class Verdict:
    """What to do with one update, and why."""

    action: Action
    reason: str


class HealthMonitor:
    """Judges each update by a window of the applied ones; its state goes into checkpoints."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.norms: deque[float] = deque(maxlen=config.window)
        self.consecutive = 0
        self.counts = {"nonfinite": 0, "spike": 0}
        self.rolled_back_at: int | None = None
        self.furthest = -1
        self.rollbacks = 0

    def decide(self, update: int, loss: float, grad_norm: float) -> Verdict:
        """Judge update `update` (from 0) by its loss and pre-clip gradient norm, before it is applied.

        A run stops at the second rollback from the same update, or after `max_consecutive` rollbacks with no update
        applied beyond the furthest one that was rolled back.
        """
        fault, reason = self._fault(loss, grad_norm)
        if fault is None:
            if update > self.furthest:
                self.rollbacks = 0
            self.losses.append(loss)
            self.norms.append(grad_norm)
            self.consecutive = 0
            return Verdict("apply", "")
        self.counts[fault] += 1
        action: Action = self.config.nonfinite if fault == "nonfinite" else self.config.spike  # type: ignore[assignment]  # two Literals, both within Action
        if action == "rollback":
            if self.rolled_back_at == update:
                return Verdict("stop", f"{reason}, again at update {update} after a rollback: the data isn't the cause")
            if self.rollbacks >= self.config.max_consecutive:
                return Verdict("stop", f"{reason}; {self.rollbacks} rollbacks did not get past update {self.furthest}")
            self.rolled_back_at, self.furthest = update, max(update, self.furthest)
            self.rollbacks += 1
        if action == "skip":
            self.consecutive += 1
            if self.consecutive >= self.config.max_consecutive:
                return Verdict("stop", f"{reason}; {self.consecutive} updates in a row were skipped")
        return Verdict(action, reason)

    def _fault(self, loss: float, grad_norm: float) -> tuple[str | None, str]:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return "nonfinite", f"{name} is {value}"
        if self.config.spike == "ignore" or len(self.losses) < self.config.window:
            return None, ""
        for name, value, window in (("loss", loss, self.losses), ("gradient norm", grad_norm, self.norms)):
            mean = statistics.fmean(window)
            sigma = max(statistics.pstdev(window, mean), SIGMA_FLOOR * abs(mean))
            if value > mean + self.config.spike_sigma * sigma:
                return "spike", f"{name} {value:.4g} is {(value - mean) / sigma:.1f} sigma above its mean {mean:.4g}"
        return None, ""

    def state(self) -> dict[str, Any]:
        """All of it, for JSON; floats keep every bit."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "consecutive": self.consecutive,
            "counts": dict(self.counts),
            "rolled_back_at": self.rolled_back_at,
            "furthest": self.furthest,
            "rollbacks": self.rollbacks,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.losses = deque(state["losses"], self.config.window)
        self.norms = deque(state["norms"], self.config.window)
        self.consecutive, self.rolled_back_at = state["consecutive"], state["rolled_back_at"]
        self.counts = dict(state["counts"])
        self.furthest, self.rollbacks = state.get("furthest", -1), state.get("rollbacks", 0)  # not in older checkpoints

    def roll_back_to(self, state: Mapping[str, Any]) -> None:
        """Take the windows of a checkpoint's state: updates that were undone are no measure of what is usual."""
        self.losses = deque(state.get("losses", ()), self.config.window)
        self.norms = deque(state.get("norms", ()), self.config.window)
        self.consecutive = state.get("consecutive", 0)

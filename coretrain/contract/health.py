"""What to do about an update before it is applied: non-finite values, spikes of loss or gradient norm.

What is no number is seen at once. A spike's limits leave the newest `health.lag` updates out: a device that is so far
ahead of the host has the same limits as one that waits, and the same verdicts.

On a rollback the trainer goes back to its newest checkpoint and past the data up to the bad batch. `roll_back_to` then
gives the windows of that checkpoint back, but not the memory of rollbacks, which is what ends a run that can't get on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from coretrain.config.training import HealthConfig
from coretrain.contract.update import Limits

Action = Literal["apply", "skip", "stop", "rollback"]
SIGMA_FLOOR = 1e-3
"""Smallest standard deviation, relative to the mean: a steady series would else call its own rounding a spike."""


@dataclass(frozen=True)
class Verdict:
    """What to do with one update, and why."""

    action: Action
    reason: str


class HealthMonitor:
    """Judges each update by a window of the applied ones; its state goes into checkpoints.

    `wide` says that losses come in float64. Else limits are rounded to float32, so that every device compares the same
    two numbers.
    """

    def __init__(self, config: HealthConfig, wide: bool = True) -> None:
        self.config, self.wide = config, wide
        self.losses: deque[float] = deque(maxlen=config.window)
        self.norms: deque[float] = deque(maxlen=config.window)
        self.recent: deque[tuple[float, float] | None] = deque()
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
            self._remember((loss, grad_norm))
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
        return self.pass_over(reason) if action == "skip" else Verdict(action, reason)

    def pass_over(self, reason: str) -> Verdict:
        """Skip an update that isn't to be made; stop where it is the last of too many in a row."""
        self.consecutive += 1
        if self.consecutive >= self.config.max_consecutive:
            return Verdict("stop", f"{reason}; {self.consecutive} updates in a row were skipped")
        self._remember(None)
        return Verdict("skip", reason)

    def limits(self, ahead: int = 0) -> Limits:
        """The largest loss and norm that are no spike, for the update that has `ahead` undecided ones before it.

        `ahead` is at most `health.lag`. Of those updates nothing need be known.
        """
        if self.config.spike == "ignore":
            return Limits(math.inf, math.inf)
        older = max(0, len(self.recent) + ahead - self.config.lag)
        windows = self.losses.copy(), self.norms.copy()
        for figures in itertools.islice(self.recent, older):
            for window, figure in zip(windows, figures or (), strict=False):
                window.append(figure)
        if len(windows[0]) < self.config.window:
            return Limits(math.inf, math.inf)
        return Limits(*(self._limit(*self._usual(window)) for window in windows))

    def _usual(self, window: Collection[float]) -> tuple[float, float]:
        """Mean and standard deviation."""
        mean = statistics.fmean(window)
        return mean, max(statistics.pstdev(window, mean), SIGMA_FLOOR * abs(mean))

    def _limit(self, mean: float, sigma: float) -> float:
        limit = mean + self.config.spike_sigma * sigma
        with np.errstate(over="ignore"):  # then there is none
            rounded = limit if self.wide else float(np.float32(limit))
        return math.inf if math.isnan(rounded) else rounded

    def _fault(self, loss: float, grad_norm: float) -> tuple[str | None, str]:
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return "nonfinite", f"{name} is {value}"
        limits = self.limits()
        for name, value, limit, window in (
            ("loss", loss, limits.loss, self.losses),
            ("gradient norm", grad_norm, limits.norm, self.norms),
        ):
            if value > limit:
                mean, sigma = self._usual(window)
                return "spike", f"{name} {value:.4g} is {(value - mean) / sigma:.1f} sigma above its mean {mean:.4g}"
        return None, ""

    def _remember(self, figures: tuple[float, float] | None) -> None:
        """Count an update, None for one that was skipped, and take into the windows what is old enough."""
        self.recent.append(figures)
        self._age()

    def _age(self) -> None:
        while len(self.recent) > self.config.lag:
            if figures := self.recent.popleft():
                self.losses.append(figures[0])
                self.norms.append(figures[1])

    def state(self) -> dict[str, Any]:
        """All of it, for JSON; floats keep every bit."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "recent": [figures and list(figures) for figures in self.recent],
            "consecutive": self.consecutive,
            "counts": dict(self.counts),
            "rolled_back_at": self.rolled_back_at,
            "furthest": self.furthest,
            "rollbacks": self.rollbacks,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self._windows(state)
        self.consecutive, self.rolled_back_at = state["consecutive"], state["rolled_back_at"]
        self.counts = dict(state["counts"])
        self.furthest, self.rollbacks = state.get("furthest", -1), state.get("rollbacks", 0)  # not in older checkpoints

    def roll_back_to(self, state: Mapping[str, Any]) -> None:
        """Take the windows of a checkpoint's state: updates that were undone are no measure of what is usual."""
        self._windows(state)
        self.consecutive = state.get("consecutive", 0)

    def _windows(self, state: Mapping[str, Any]) -> None:
        self.losses = deque(state.get("losses", ()), self.config.window)
        self.norms = deque(state.get("norms", ()), self.config.window)
        self.recent = deque(figures and (figures[0], figures[1]) for figures in state.get("recent", ()))
        self._age()

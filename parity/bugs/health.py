"""Bugs in what is done about an update that fails. The contract decides it; here the stack has a policy of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import coretrain.training.loop
from coretrain.contract.health import HealthMonitor, Verdict
from coretrain.contract.schedule import learning_rate
from parity.gates import HEALTH, ROWS, TRAJECTORY
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import TORCH, Side


def _decide(patch: Patch, change: Callable[[Any, HealthMonitor, int, float, float], Verdict]) -> None:
    """`change(decide, monitor, update, loss, norm)` for the verdict on an update."""
    wrap(patch, HealthMonitor, "decide", lambda f: lambda self, *seen: change(f, self, *seen))


@mutant("health", HEALTH)
def nonfinite_update_applied_anyway(patch: Patch, s: Side) -> None:
    """norm > limit, which no NaN is: the update goes through."""

    def change(f: Any, monitor: Any, update: int, loss: float, norm: float) -> Verdict:
        verdict = f(monitor, update, loss, norm)
        return Verdict("apply", "") if " is nan" in verdict.reason or " is inf" in verdict.reason else verdict

    _decide(patch, change)


@mutant("health", HEALTH)
def spike_inside_its_own_window(patch: Patch, s: Side) -> None:
    """The window is brought up to date before the update is judged by it."""

    def change(f: Any, monitor: Any, update: int, loss: float, norm: float) -> Verdict:
        full = len(monitor.losses) == monitor.config.window
        kept = monitor.losses.copy(), monitor.norms.copy()
        if full:
            monitor.losses.append(loss)
            monitor.norms.append(norm)
        verdict = f(monitor, update, loss, norm)
        if full:
            monitor.losses, monitor.norms = kept
            if verdict.action == "apply":
                monitor.losses.append(loss)
                monitor.norms.append(norm)
        return verdict

    _decide(patch, change)


@mutant("health", HEALTH)
def skipped_updates_in_the_window(patch: Patch, s: Side) -> None:
    """The first spike raises the bar for the second."""

    def change(f: Any, monitor: Any, update: int, loss: float, norm: float) -> Verdict:
        verdict = f(monitor, update, loss, norm)
        if "sigma" in verdict.reason:
            monitor.losses.append(loss)
            monitor.norms.append(norm)
        return verdict

    _decide(patch, change)


@mutant("health", HEALTH)
def skips_counted_without_a_reset(patch: Patch, s: Side) -> None:
    """max_consecutive of the whole run: it stops at the fourth skip."""

    def change(f: Any, monitor: Any, update: int, loss: float, norm: float) -> Verdict:
        before = monitor.consecutive
        verdict = f(monitor, update, loss, norm)
        monitor.consecutive = max(monitor.consecutive, before)
        return verdict

    _decide(patch, change)


@mutant("health", HEALTH)
def window_lost_on_resume(patch: Patch, s: Side) -> None:
    """A monitor that starts empty: no spike is seen until it is full."""

    def load(f: Any) -> Any:
        return lambda self, state: f(self, state | {"losses": [], "norms": []})

    wrap(patch, HealthMonitor, "load", load)


@mutant("health", ROWS, probe="health")
def skipped_data_read_again_after_a_resume(patch: Patch, s: Side) -> None:
    """The data cursor counts applied updates: a skip doesn't use its batch up."""

    def advance(f: Any) -> Any:
        def counted(self: Any, applied: bool) -> None:
            f(self, applied)
            if not applied:
                self.progress = dataclasses.replace(self.progress, data_index=self.progress.data_index - 1)

        return counted

    wrap(patch, coretrain.training.loop.Loop, "advance", advance)


@mutant("health", TRAJECTORY)
def rate_counted_by_applied_updates(patch: Patch, s: Side) -> None:
    """scheduler.step() beside optimizer.step(): a skip holds the schedule up."""

    def apply(f: Any) -> Any:
        return lambda self, lr, factor, applied: f(self, learning_rate(self.config, applied), factor, applied)

    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("health", TRAJECTORY)
def bias_correction_counts_skipped_updates(patch: Patch, s: Side) -> None:
    """Adam's t is the number of the update, skipped ones included."""

    def gradients(f: Any) -> Any:
        def noted(self: Any, batch: Any, update: int, scale: float) -> tuple[float, float]:
            self.noted_update = update
            return f(self, batch, update, scale)

        return noted

    def apply(f: Any) -> Any:
        def counted(self: Any, lr: float, factor: float, applied: int) -> None:
            if s is TORCH:
                for state in self.optimizer.adam.state.values():
                    state["step"].fill_(self.noted_update)
            f(self, lr, factor, self.noted_update)

        return counted

    wrap(patch, s.trainer.Trainer, "gradients", gradients)
    wrap(patch, s.trainer.Trainer, "apply", apply)

"""Bugs in what is done about an update that fails. The contract decides it; here the stack has a policy of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
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


def _judged(patch: Patch, s: Side, change: Callable[..., Any]) -> None:
    """`change(judged, health, standing, loss, norm, limits, finite)` for the verdict that a stack makes itself."""
    wrap(patch, s.step, "judged", lambda f: lambda *seen: change(f, *seen))


@mutant("health", HEALTH, retraced=True)
def nonfinite_update_applied_anyway(patch: Patch, s: Side) -> None:
    """norm > limit, which no NaN is: the update goes through."""

    def blind(f: Any, health: Any, standing: Any, loss: Any, norm: Any, limits: Any, finite: Any) -> Any:
        usual = (loss <= limits.loss) & (norm <= limits.norm) | ~finite(loss) | ~finite(norm)
        return usual, f(health, standing, *limits, limits, lambda value: usual)[1]

    _judged(patch, s, blind)

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
        def counted(self: Any, one: Any, figures: Any, verdict: Verdict) -> Any:
            row = f(self, one, figures, verdict)
            if verdict.action != "apply":
                self.progress = dataclasses.replace(self.progress, data_index=self.progress.data_index - 1)
            return row

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


@mutant("health", HEALTH)
def limits_of_the_newest_update_too(patch: Patch, s: Side) -> None:
    """A host that waits for each update, and makes the limits of all that it knows."""

    def made(f: Any) -> Any:
        return lambda self, config, *more, **named: f(self, config.model_copy(update={"lag": 0}), *more, **named)

    wrap(patch, HealthMonitor, "__init__", made)
    patch.setattr(coretrain.training.loop.Loop, "ahead", 0)


@mutant("health", TRAJECTORY, retraced=True)
def skipped_updates_counted_while_the_host_is_behind(patch: Patch, s: Side) -> None:
    """A device that counts each update that it has begun: Adam's t is one too high until the host says otherwise."""
    if s is TORCH:

        def step(f: Any) -> Any:
            def counted(self: Any, lr: float, factor: Any, fine: Any = None) -> None:
                f(self, lr, factor, fine)
                for state in self.adam.state.values():
                    state["step"] += ~fine

            return counted

        wrap(patch, s.optimizer.Optimizer, "step", step)
        return

    def change(f: Any, health: Any, standing: Any, *seen: Any) -> Any:
        fine, after = f(health, standing, *seen)
        return fine, after._replace(applied=standing.applied + 1)

    _judged(patch, s, change)


@mutant("health", TRAJECTORY, retraced=True)
def moments_of_a_skipped_update_kept(patch: Patch, s: Side) -> None:
    """The verdict guards the weights alone: a fault is in the moments for good."""
    if s is TORCH:

        def step(f: Any) -> Any:
            def moved(self: Any, lr: float, factor: Any, fine: Any = None) -> None:
                f(self, lr, factor, fine)
                beta = self.config.optimizer.beta1
                for parameter, state in self.adam.state.items():
                    moment = state["exp_avg"]
                    moment.copy_(moment.where(fine, beta * moment + (1 - beta) * parameter.grad))

            return moved

        wrap(patch, s.optimizer.Optimizer, "step", step)
        return

    def update(f: Any) -> Any:
        def moved(config: Any, optimizer: Any, *given: Any) -> Any:
            new: list[Any] = []

            def step(*seen: Any) -> Any:
                new.append(optimizer.step(*seen[:-1]))  # as if it were applied
                return optimizer.step(*seen)

            (params, _, after), figures = f(config, SimpleNamespace(step=step), *given)
            return (params, new[0][1], after), figures

        return moved

    wrap(patch, s.step, "update", update)


@mutant("health", TRAJECTORY, retraced=True)
def applied_after_the_run_has_ended(patch: Patch, s: Side) -> None:
    """An update that was begun before the host knew of the stop changes the weights that are saved."""

    def change(f: Any, *seen: Any) -> Any:
        fine, after = f(*seen)
        return fine, after._replace(halted=after.halted & False)

    _judged(patch, s, change)


@mutant("health", HEALTH)
def figures_of_the_update_before(patch: Patch, s: Side) -> None:
    """One buffer for what is sent to the host: it holds the figures of another update by the time they are read."""

    def update(f: Any) -> Any:
        def late(self: Any, *given: Any) -> Any:
            before, self.last_read = getattr(self, "last_read", None), f(self, *given)
            return before or self.last_read

        return late

    wrap(patch, s.trainer.Trainer, "update", update)

"""Bugs in the learning rate. The contract's loop hands it over; here the stack has one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from coretrain.contract.schedule import learning_rate
from parity.gates import RATE_USED
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import Side


def _rate(patch: Patch, s: Side, rule: Callable[[Any, int, float], float]) -> None:
    """`rule(config, update, lr)` for the rate that an update gets."""

    def apply(f: Any) -> Any:
        return lambda self, lr, factor, applied: f(self, rule(self.config, applied, lr), factor, applied)

    wrap(patch, s.trainer.Trainer, "apply", apply)


def _scheduled(config: Any, update: int, **changes: Any) -> float:
    return learning_rate(config.model_copy(update={"schedule": config.schedule.model_copy(update=changes)}), update)


@mutant("schedule", RATE_USED)
def schedule_one_update_late(patch: Patch, s: Side) -> None:
    """scheduler.step() before the first update is missed."""
    _rate(patch, s, lambda config, update, lr: learning_rate(config, max(update - 1, 0)))


@mutant("schedule", RATE_USED)
def cosine_over_one_update_more(patch: Patch, s: Side) -> None:
    """The cosine ends at N + 1."""
    _rate(patch, s, lambda c, update, lr: _scheduled(c, update, horizon=c.train.updates + 1))


@mutant("schedule", RATE_USED)
def cosine_over_one_update_less(patch: Patch, s: Side) -> None:
    """The cosine ends at N - 1."""
    _rate(patch, s, lambda c, update, lr: _scheduled(c, update, horizon=c.train.updates - 1))


@mutant("schedule", RATE_USED)
def first_rate_is_zero(patch: Patch, s: Side) -> None:
    """A warm-up from 0: the first update changes nothing."""
    _rate(patch, s, lambda config, update, lr: learning_rate(config, update - 1) if update else 0.0)


@mutant("schedule", RATE_USED)
def warmup_in_micro_steps(patch: Patch, s: Side) -> None:
    """The schedule is stepped once for each micro-batch."""
    _rate(patch, s, lambda config, update, lr: learning_rate(config, update * config.train.accumulation))


@mutant("schedule", RATE_USED)
def warmup_ends_one_update_early(patch: Patch, s: Side) -> None:
    """lr (n + 1) / warmup for lr (n + 1) / (warmup + 1)."""

    def rule(config: Any, update: int, lr: float) -> float:
        warmup = config.schedule.warmup_updates
        return lr * (warmup + 1) / warmup if update < warmup else lr

    _rate(patch, s, rule)


@mutant("schedule", RATE_USED)
def min_lr_ignored(patch: Patch, s: Side) -> None:
    """The cosine goes down to zero."""
    _rate(patch, s, lambda config, update, lr: _scheduled(config, update, min_lr=0.0))


@mutant("schedule", RATE_USED)
def rate_off_by_a_millionth(patch: Patch, s: Side) -> None:
    """lr x (1 + 1e-6)."""
    _rate(patch, s, lambda config, update, lr: lr * (1 + 1e-6))


@mutant("schedule", RATE_USED)
def rate_in_float32(patch: Patch, s: Side) -> None:
    """The rate rounded to float32 on its way to the device."""
    _rate(patch, s, lambda config, update, lr: float(np.float32(lr)))

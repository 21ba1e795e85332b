"""The learning rate of update n: a float64 closed form. Both stacks are handed this number; neither owns a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from coretrain.config.run import RunConfig
from coretrain.config.schedules import decay_updates, shape_of
from coretrain.config.training import ScheduleConfig


def learning_rate(config: RunConfig, update: int) -> float:
    """Learning rate of update `update`, counted from 0.

    Warm-up is linear, lr x (n + 1) / (warmup + 1), so that lr(0) > 0 and lr(warmup) is the peak; that of `rewarm` rises
    from start_lr, as if it were the rate of update -1. The decay ends at the horizon with min_lr and stays there; with
    `constant` there is no decay. The cosine is that of Loshchilov and Hutter (2017), equal to
    `optax.warmup_cosine_decay_schedule` started at lr / (warmup + 1). `infinite` is that of Ibrahim et al. (2024): by a
    cosine to constant_lr in cooldown_updates, then constant, then the final decay, which wsd has too.
    """
    s, peak = config.schedule, config.optimizer.lr
    horizon = s.horizon or config.train.updates
    if update < s.warmup_updates:
        low = _start(s) if s.kind == "rewarm" else 0.0
        return low + (peak - low) * (update + 1) / (s.warmup_updates + 1)
    if s.kind == "constant":
        return peak
    if update >= horizon:
        return s.min_lr
    start = s.warmup_updates
    if s.kind in ("wsd", "infinite"):
        start = max(start, horizon - decay_updates(s, horizon))
    if s.kind == "infinite":
        held = (peak + s.min_lr) / 2 if s.constant_lr is None else s.constant_lr
        cooled = update - s.warmup_updates
        if cooled < (s.cooldown_updates or 0):
            return held + (peak - held) * _left("cosine", cooled / (s.cooldown_updates or 1))
        peak = held
    progress = max(0, update - start) / (horizon - start)
    shape = shape_of(s) or ("linear" if s.kind == "linear" else "cosine")
    if shape == "exponential":
        return peak * float((s.min_lr / peak) ** progress)
    return s.min_lr + (peak - s.min_lr) * _left(shape, progress)


def _start(schedule: ScheduleConfig) -> float:
    """Where `rewarm` begins: min_lr, where most runs end, while the run that it goes on from isn't opened yet."""
    return schedule.min_lr if schedule.start_lr is None else schedule.start_lr


def _left(shape: str, progress: float) -> float:
    """What is left of a fall at `progress` from 0 to 1: 1 at first, 0 at the end."""
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    if shape == "1-sqrt":  # Haegele et al. (2024)
        return 1.0 - math.sqrt(progress)
    return 1.0 - progress


def clip_factor(norm: Any, limit: float, least: Callable[[float, Any], Any] = min) -> Any:
    """What gradients of global norm `norm` are multiplied by: min(1, limit / (norm + 1e-6)), or 1 where limit is 0.

    The 1e-6 is that of torch's `clip_grad_norm_`; `optax.clip_by_global_norm` has none. `norm` may be a framework's
    scalar, `least` is then its minimum.
    """
    return least(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0

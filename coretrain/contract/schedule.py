"""The learning rate of update n: a float64 closed form. Both stacks are handed this number; neither owns a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from coretrain.config.run import RunConfig


def learning_rate(config: RunConfig, update: int) -> float:
    """Learning rate of update `update`, counted from 0.

    Warm-up is linear, lr x (n + 1) / (warmup + 1), so that lr(0) > 0 and lr(warmup) is the peak. The decay ends at the
    horizon with min_lr and stays there; with `constant` there is no decay. The cosine is that of Loshchilov and Hutter
    (2017), equal to `optax.warmup_cosine_decay_schedule` started at lr / (warmup + 1).
    """
    s, peak = config.schedule, config.optimizer.lr
    horizon = s.horizon or config.train.updates
    if update < s.warmup_updates:
        return peak * (update + 1) / (s.warmup_updates + 1)
    if s.kind == "constant":
        return peak
    start = s.warmup_updates
    if s.kind == "wsd":
        start = max(start, horizon - max(1, round(s.decay_fraction * horizon)))
    if update >= horizon:
        return s.min_lr
    progress = max(0, update - start) / (horizon - start)
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if s.kind == "cosine" else 1.0 - progress
    return s.min_lr + (peak - s.min_lr) * share


def clip_factor(norm: Any, limit: float, least: Callable[[float, Any], Any] = min) -> Any:
    """What gradients of global norm `norm` are multiplied by: min(1, limit / (norm + 1e-6)), or 1 where limit is 0.

    The 1e-6 is that of torch's `clip_grad_norm_`; `optax.clip_by_global_norm` has none. `norm` may be a framework's
    scalar, `least` is then its minimum.
    """
    return least(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0

"""Bugs in the clip and in the norm that it goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from coretrain.contract.schedule import clip_factor
from parity.bugs.loss import each_gradient
from parity.gates import NORM, UPDATE
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import Side


def _clip(patch: Patch, s: Side, rule: Callable[[float, float], float]) -> None:
    """`rule(norm, limit)` for the factor that an update's gradients are multiplied by."""

    def gradients(f: Any) -> Any:
        def noted(self: Any, *args: Any) -> tuple[float, float]:
            loss, self.noted_norm = f(self, *args)
            return loss, self.noted_norm

        return noted

    def apply(f: Any) -> Any:
        def clipped(self: Any, lr: float, factor: float, applied: int) -> None:
            f(self, lr, rule(self.noted_norm, self.config.optimizer.clip), applied)

        return clipped

    wrap(patch, s.trainer.Trainer, "gradients", gradients)
    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("clip", UPDATE, LLAMA)
def clip_without_epsilon(patch: Patch, s: Side) -> None:
    """optax's clip for torch's: no 1e-6."""
    _clip(patch, s, lambda norm, limit: min(1.0, limit / norm))


@mutant("clip", UPDATE)
def clip_a_hundredth_high(patch: Patch, s: Side) -> None:
    """1.01 times the limit."""
    _clip(patch, s, lambda norm, limit: clip_factor(norm, 1.01 * limit))


@mutant("clip", UPDATE)
def no_clip(patch: Patch, s: Side) -> None:
    """The clipped gradients are computed and not used."""
    _clip(patch, s, lambda norm, limit: 1.0)


@mutant("clip", UPDATE)
def clip_of_each_tensor(patch: Patch, s: Side) -> None:
    """optax.clip_by_block_rms' mistake: each tensor by its own norm."""

    def apply(f: Any) -> Any:
        def clipped(self: Any, lr: float, factor: float, applied: int) -> None:
            limit = self.config.optimizer.clip
            each_gradient(s, self, lambda g: g * clip_factor(float((g**2).sum()) ** 0.5, limit))
            f(self, lr, 1.0, applied)

        return clipped

    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("clip", NORM)
def norm_taken_after_the_clip(patch: Patch, s: Side) -> None:
    """The norm that is reported, and clipped by, is that of clipped gradients."""

    def gradients(f: Any) -> Any:
        def after(self: Any, *args: Any) -> tuple[float, float]:
            loss, norm = f(self, *args)
            return loss, norm * clip_factor(norm, self.config.optimizer.clip)

        return after

    wrap(patch, s.trainer.Trainer, "gradients", gradients)


@mutant("clip", NORM, retraced=True)
def norm_without_one_tensor(patch: Patch, s: Side) -> None:
    """A tensor that isn't in the list of what is clipped (the last; JAX's first is a key bias, which has no norm)."""
    wrap(patch, s.step, "global_norm", lambda f: lambda gradients: f(list(gradients)[:-1]))


@mutant("clip", NORM, retraced=True)
def norm_as_a_sum_of_norms(patch: Patch, s: Side) -> None:
    """Tensors' norms added up without their squares."""
    wrap(patch, s.step, "global_norm", lambda f: lambda gradients: sum(f([g]) for g in gradients))

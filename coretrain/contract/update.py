"""What the loop hands in with an update, what comes back, and the verdict that lies between, for hosts and devices.

A device may be `health.lag` updates ahead of the host. So the verdict is made of numbers that are known by then (limits
of older updates) and of a few that the device keeps itself (`Standing`); the host comes to the same one later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from coretrain.config.training import HealthConfig, OptimizerConfig
from coretrain.contract.optimizer import bias_corrections


class Limits(NamedTuple):
    """The largest loss and gradient norm that are no spike; infinite where there is no limit."""

    loss: Any
    norm: Any


class Standing(NamedTuple):
    """What an update's verdict needs of the updates before it: numbers, or scalars on a device."""

    applied: Any
    """Updates that were applied; what bias correction counts."""
    skipped: Any
    """Updates in a row, up to now, that were not."""
    halted: Any
    """Whether an update has ended the run or asked for a rollback: those that follow change nothing."""


class Figures(NamedTuple):
    """What an update gives back."""

    loss: float
    """Mean of the objective over the batch's targets."""
    norm: float
    """Gradient norm, before the clip."""
    applied: bool
    more: tuple[float, ...] = ()
    """What else an objective tells of the batch, as `coretrain.alignment.figures` names it."""


Read = Callable[[], Figures]
"""Waits for an update's figures."""


@dataclass(frozen=True)
class Orders:
    """What the loop hands in with an update."""

    lr: float
    limits: Limits
    scale: float
    """Loss scale of float16, else 1."""
    standing: Standing
    """Where the run stood after the last update whose figures were read."""
    alone: bool
    """Whether that is the update before this one: no other is under way, and `standing` is all that a device knows."""


def judged(
    health: HealthConfig, standing: Standing, loss: Any, norm: Any, limits: Limits, finite: Callable[[Any], Any]
) -> tuple[Any, Standing]:
    """Whether an update is applied, and where the run stands after it.

    Loss, norm and standing are numbers or a framework's scalars (`== 0` is how both say not); `finite` is `isfinite`.
    `contract.health.HealthMonitor.decide` says the same of an update, and why.
    """
    number = finite(loss) & finite(norm)
    usual = (loss <= limits.loss) & (norm <= limits.norm)
    fine = number & usual & (standing.halted == 0)
    skipped = (standing.skipped + 1) * (fine == 0)
    ends = skipped >= health.max_consecutive
    if health.nonfinite != "skip":
        ends = ends | (number == 0)
    if health.spike not in ("skip", "ignore"):
        ends = ends | (number & (usual == 0))
    return fine, Standing(standing.applied + fine, skipped, standing.halted | ends)


def corrections(optimizer: OptimizerConfig, applied: int, lag: int) -> list[tuple[float, float]]:
    """Adam's bias corrections of the update that follows `applied` others, or up to `lag` more of them."""
    return [bias_corrections(optimizer, applied + more) for more in range(lag + 1)]

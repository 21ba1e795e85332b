"""What `schedule.kind` asks of the fields beside it; what has no meaning with it is refused."""

from __future__ import annotations

from collections.abc import Mapping

from coretrain.config.fields import conflict
from coretrain.config.training import OptimizerConfig, ScheduleConfig, TrainConfig

USED: Mapping[str, tuple[str, ...]] = {
    "start_lr": ("rewarm",),
    "cooldown_updates": ("infinite",),
    "constant_lr": ("infinite",),
    "decay_shape": ("wsd", "infinite"),
}
"""The kinds in which a field of `[schedule]` counts; of a field that isn't named here, all or as its text says."""


def check_schedule(schedule: ScheduleConfig, train: TrainConfig, optimizer: OptimizerConfig) -> None:
    """Raises what `conflict` makes where the fields don't go together."""
    kind, peak, low = schedule.kind, optimizer.lr, schedule.min_lr
    horizon = schedule.horizon or train.updates
    for name, kinds in USED.items():
        if kind not in kinds and getattr(schedule, name) is not None:
            raise conflict(
                "config/field-of-another-schedule",
                f"schedule.{name} = {getattr(schedule, name)} counts with schedule.kind = {' or '.join(kinds)}, and "
                f"the kind is {kind}: leave schedule.{name} out",
            )
    if kind != "constant" and schedule.warmup_updates > horizon:
        raise conflict(
            "config/warmup-longer-than-horizon",
            f"schedule.warmup_updates = {schedule.warmup_updates} is longer than the horizon of "
            f"{horizon} updates: shorten the warm-up, or raise train.updates or schedule.horizon",
        )
    if kind != "constant" and low > peak:
        raise conflict(
            "config/min-lr-above-lr",
            f"schedule.min_lr = {low:g} is above optimizer.lr = {peak:g}: lower it (a tenth of lr is usual)",
        )
    if kind == "rewarm":
        _check_rewarm(schedule, train, peak)
    if kind == "infinite":
        _check_infinite(schedule, horizon, peak)
    if shape_of(schedule) == "exponential" and not low:
        raise conflict(
            "config/exponential-to-zero",
            "schedule.min_lr = 0, which an exponential decay never reaches: set schedule.min_lr above 0, or "
            "schedule.decay_shape = linear, 1-sqrt or cosine",
        )


def shape_of(schedule: ScheduleConfig) -> str:
    """The shape of the final decay, '' where there is none."""
    return (schedule.decay_shape or {"wsd": "linear", "infinite": "exponential"}.get(schedule.kind)) or ""


def _check_rewarm(schedule: ScheduleConfig, train: TrainConfig, peak: float) -> None:
    if schedule.start_lr is None and train.start is None:
        raise conflict(
            "config/rewarm-from-nothing",
            "schedule.kind = rewarm rises from the last learning rate of another run, and none is named: give one with "
            "--from runs/NAME, or schedule.start_lr",
        )
    if (schedule.start_lr or 0) > peak:
        raise conflict(
            "config/start-lr-above-lr",
            f"schedule.start_lr = {schedule.start_lr:g} is above optimizer.lr = {peak:g}, which rewarm rises to: lower "
            "it, raise optimizer.lr, or set schedule.kind = cosine",
        )


def _check_infinite(schedule: ScheduleConfig, horizon: int, peak: float) -> None:
    if schedule.cooldown_updates is None:
        raise conflict(
            "config/infinite-without-cooldown",
            "schedule.kind = infinite needs schedule.cooldown_updates, the updates from optimizer.lr down to the "
            "constant rate: it has no default, as the horizon may move (a quarter of the first run is usual)",
        )
    taken = schedule.warmup_updates + schedule.cooldown_updates
    if taken > horizon - decay_updates(schedule, horizon):
        raise conflict(
            "config/infinite-longer-than-horizon",
            f"schedule.warmup_updates + cooldown_updates = {taken} leave no room for the last "
            f"{decay_updates(schedule, horizon)} of {horizon} updates, which decay: shorten one, or raise "
            "train.updates",
        )
    if schedule.constant_lr is not None and not schedule.min_lr <= schedule.constant_lr <= peak:
        raise conflict(
            "config/constant-lr-out-of-range",
            f"schedule.constant_lr = {schedule.constant_lr:g} isn't between schedule.min_lr = {schedule.min_lr:g} and "
            f"optimizer.lr = {peak:g}: choose one that is, or leave it out",
        )


def decay_updates(schedule: ScheduleConfig, horizon: int) -> int:
    """Updates of the final decay of wsd and infinite, at least 1."""
    return max(1, round(schedule.decay_fraction * horizon))

"""What a new run takes of its start beside the weights (`train.start_moments`): moments, their count, its last rate.

`fresh`: no moments, and a count of 0. `keep`: both moments and the count of the updates that they are of, so that
Adam's corrections 1 - beta^t go on as they were; with the same rates and data the old run just goes on. `warm`: the
second moment and the count are kept, and the first (of Muon the momentum) is zero. One count corrects both moments. It
has to be the second's: with a count of 0 a second moment that is full already would be taken for 1 / (1 - beta2) times
what it is, and the first steps would be a fifth of their size at beta2 = 0.95. So the first moment isn't corrected for
being new: the n-th step has 1 - beta1^n of its size, a warm-up of some 1 / (1 - beta1) updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coretrain.adapters.targets import trainable_parameters
from coretrain.base.arrays import Array, Tensors
from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.lazy import LazyTensors
from coretrain.checkpoint.interchange import newest_interchange
from coretrain.checkpoint.manifest import Progress, read_sealed
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import learning_rate
from coretrain.runs.start import StartTensors

GROUPS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("adam", "adamw"), ("first_moment", "second_moment")),
    "muon": ("momentum", "first_moment", "second_moment"),
}
"""The groups of moments of each optimizer, as interchange checkpoints name them."""
ANEW = ("momentum", "first_moment")
"""Those that begin at zero with `warm`."""


def moments_of(start: StartTensors, config: RunConfig) -> dict[str, Tensors]:
    """The start's moments by group and name, read when they are asked for; {} where a run begins with fresh ones.

    Raises `UserError` where the start hasn't got what `train.start_moments` asks for.
    """
    asked, place = config.train.start_moments, config.train.start
    if asked == "fresh":
        return {}
    names = GROUPS[config.optimizer.name]
    had = {group: tensors for group, tensors in start.groups.items() if group != "parameters"}
    if not had or not start.progress.applied:
        raise UserError(
            "runs/start-without-moments",
            f"train.start_moments = {asked}, and train.start = {place} has no moments, as weights that were imported: "
            "set train.start_moments = fresh",
        )
    if set(GROUPS[start.config.optimizer.name]) != set(names):
        raise UserError(
            "runs/moments-of-another-optimizer",
            f"train.start_moments = {asked}, and train.start = {place} was trained with optimizer.name = "
            f"{start.config.optimizer.name}, whose moments aren't those of {config.optimizer.name}: set that "
            "optimizer, or train.start_moments = fresh",
        )
    held = {name for tensors in had.values() for name in tensors}
    if lacking := [row.name for row in trainable_parameters(config) if row.name not in held]:
        raise UserError(
            "runs/moments-incomplete",
            f"train.start_moments = {asked}, and train.start = {place} has no moments of {lacking[0]}: set "
            "train.start_moments = fresh",
        )
    return {group: _taken(had[group], config, zero=asked == "warm" and group in ANEW) for group in names}


def _taken(tensors: Tensors, config: RunConfig, zero: bool) -> LazyTensors:
    def take(name: str) -> Array:
        value = tensors[name][: config.model.context if name == "embed.position" else None]
        return np.zeros_like(value) if zero else value

    return LazyTensors(tensors, take)


def first_progress(start: StartTensors, config: RunConfig, progress: Progress) -> dict[str, Any]:
    """What the `progress` of a new run has from its start: the count of its moments, and where it came from."""
    came = {"fingerprint": start.fingerprint, "update": start.progress.update, "moments": config.train.start_moments}
    count = progress.applied if config.train.start_moments == "fresh" else start.progress.applied
    return {"applied": count, "origin": came | {"applied": count}}


def told_origin(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The header's rows of where a run came from; none of fresh weights."""
    if not origin:
        return []
    what = {
        "fresh": "fresh",
        "keep": f"both kept, of {origin['applied']:,} updates",
        "warm": f"the second kept, of {origin['applied']:,} updates; the first from zero",
    }[origin["moments"]]
    return [
        ("start's update", f"{origin['update']:,} (weights {origin['fingerprint']})"),
        ("start's moments", what),
    ]


def with_last_rate(config: RunConfig) -> RunConfig:
    """`config` with the rate that `rewarm` rises from, where it isn't given: the last one of its start.

    Raises `UserError` where the start has had no update, or its rate is above the peak.
    """
    if config.schedule.kind != "rewarm" or config.schedule.start_lr is not None or config.train.start is None:
        return config
    place = config.train.start
    sealed = read_sealed(newest_interchange(typed_path(place)))
    if not sealed.progress.update:
        raise UserError(
            "runs/start-without-rate",
            f"schedule.kind = rewarm rises from the last learning rate of train.start = {place}, which has had no "
            "update here: give one as schedule.start_lr (0 is usual for imported weights)",
        )
    rate = learning_rate(sealed.config, sealed.progress.update - 1)
    if rate > config.optimizer.lr:
        raise UserError(
            "runs/start-rate-above-lr",
            f"the last learning rate of train.start = {place} is {rate:g}, above optimizer.lr = "
            f"{config.optimizer.lr:g}, which rewarm rises to: raise optimizer.lr, or set schedule.kind = cosine",
        )
    return config.changed(schedule__start_lr=rate)

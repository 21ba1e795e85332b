"""A run's parts with their weights: replay beside the sources of its own, and the stages of a mixture."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from fractions import Fraction
from math import lcm
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.load import config_from_json
from coretrain.config.run import RunConfig
from coretrain.contract.schedule import learning_rate
from coretrain.data.order import Stage
from coretrain.data.sources import open_source
from coretrain.data.splits import told_shares


def sources_of(config: RunConfig) -> list[tuple[str, float]]:
    """What a run reads, with weights: the replay source first, if there is one, then its source or its mixture.

    Raises `UserError` where there is no such replay source.
    """
    data = config.data
    names = [part.source for part in data.mixture] or [data.source]
    weights = with_replay([part.weight for part in data.mixture] or [1.0], config)
    if data.replay is None:
        return list(zip(names, weights, strict=True))
    try:
        open_source(data.replay, data.text_field)
    except UserError as error:
        why = str(error).replace("data.source", "data.replay", 1)
        raise UserError("data/replay-unreadable", f"{why}{_way_out(config)}") from None
    return list(zip([data.replay, *names], weights, strict=True))


def told_blend(config: RunConfig) -> list[tuple[str, str]]:
    """What a run reads, when that changes, and what it evaluates, as rows of (label, value); none of one source alone.

    Nothing is opened. Raises `UserError` as `stages_of` does.
    """
    data, train = config.data, config.train
    if not config.data.named_sets:
        return []
    names = [part.source for part in data.mixture] or [data.source]
    weights = with_replay([part.weight for part in data.mixture] or [1.0], config)
    replayed = data.replay is not None
    sources = [data.replay, *names] if data.replay is not None else names
    rows = [("data", told_shares(sources, weights, replayed) if len(sources) > 1 else sources[0])]
    rows += [(f"from update {s.start + 1:,}", told_shares(sources, s.weights, replayed)) for s in stages_of(config)]
    sets = (len(sources) if len(sources) > 1 else 0) + len(data.validation)
    most = train.eval_batches * config.tokens_per_update
    rows.append(
        (
            "evaluated",
            f"up to {sets} sets of at most {most:,} tokens, every {train.eval_interval:,} updates (not timed)",
        )
    )
    return rows


def with_replay(weights: Sequence[float], config: RunConfig) -> tuple[float, ...]:
    """`weights` with that of the replay source before them: whole numbers, so that its share is exact.

    With replay first, floor(fraction x n + 1/2) of a stage's first n rows are replayed, however many parts follow
    (`coretrain.data.order.parts_at`). Rows of text are all of one length, so that is the share of the tokens too.
    """
    if config.data.replay is None:
        return tuple(weights)
    share = Fraction(repr(config.data.replayed))
    own = [Fraction(repr(float(weight))) for weight in weights]
    exact = [share * sum(own), *((1 - share) * weight for weight in own)]
    scale = lcm(*(weight.denominator for weight in exact))
    return tuple(float(weight * scale) for weight in exact)


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of `data.stages` by the updates at which they begin.

    Raises `UserError` where one begins no later than the one before it, or never.
    """
    found = list[Stage]()
    for number, stage in enumerate(config.data.stages, 1):
        start = stage.update if stage.update is not None else first_below(config, stage.peak_over or 1.0)
        last = found[-1].start if found else 0
        said = f"data.stages: stage {number}"
        if stage.update is None and start >= config.train.updates:
            raise UserError(
                "data/stage-never-begins",
                f"{said} waits for a rate of optimizer.lr / {stage.peak_over:g} = "
                f"{config.optimizer.lr / (stage.peak_over or 1):.3g}, which this schedule does not come down to in "
                f"{config.train.updates} updates: lower peak_over or schedule.min_lr, or give an update",
            )
        if start >= config.train.updates:
            raise UserError(
                "data/stage-beyond-the-end",
                f"{said} begins at update {start}, and train.updates = {config.train.updates}: lower it, or leave the "
                "stage out",
            )
        if start <= last:
            raise UserError(
                "data/stage-out-of-order",
                f"{said} begins at update {start}, not after the stage before it, which begins at {last}: put them in "
                "order",
            )
        found.append(Stage(start, with_replay(stage.weights, config)))
    return tuple(found)


def first_below(config: RunConfig, over: float) -> int:
    """The first update after the warm-up whose learning rate is at most the peak over `over`; train.updates if none.

    After Parmar et al. 2024 (arXiv 2407.07263), who change the blend at a fifth. After its warm-up no schedule
    rises.
    """
    limit, updates = config.optimizer.lr / over, range(config.train.updates)
    warm = min(config.schedule.warmup_updates, len(updates))
    return bisect.bisect_left(updates, True, lo=warm, key=lambda update: learning_rate(config, update) <= limit)


def _way_out(config: RunConfig) -> str:
    """The name of the source that the weights were trained on, where the run that they come from tells it."""
    place = config.train.start or config.adapter.base
    if place is None:
        return ""
    try:
        folder = typed_path(place)
        file = next(at / "config.json" for at in (folder, *folder.parents[:2]) if (at / "config.json").is_file())
        data = config_from_json(Path(file).read_text(encoding="utf-8")).data
    except (UserError, OSError, ValueError, StopIteration):
        return f"; it is made from the text that {place} was trained on"
    names = ", ".join(part.source for part in data.mixture) or data.source
    return f"; {place} was trained on {names}: give that, or a part of it"

"""Two runs of which one is wrong, replayed from the last checkpoint that they agree in: tap by tap, in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch
from coretrain.data.batches import updates_of
from coretrain.data.open import open_data
from coretrain.runs.files import with_own_files
from coretrain.runs.folder import open_run
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.runs import examine
from parity.localize.search import localize_config
from parity.localize.show import Report
from parity.localize.snapshots import Interval
from parity.pair import batches
from torchtrain.trainer import Trainer as TorchTrainer

REPLAYED = 4
"""Updates that are replayed at most: each is compared in float64 down to its moments and steps."""
MICRO_BATCHES, ROWS = 2, 2
"""What of an update's batch is replayed at most."""
LARGEST = 30_000_000
"""Parameters above which a replay would take more time and memory than anybody expects of a verdict."""


def localize_runs(first: Path, second: Path) -> Report:
    """Where two runs part: the figures in their folders, then the interval of checkpoints, then its replay.

    The replay has torch go by the config of one run and JAX by the other's (each stack by its own run's, where they are
    of both). Raises `UserError` as `compare_runs` does.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report, interval = examine(first, second, Path(scratch))
        if report.verdict.kind not in ("algorithm", "dtype policy"):
            return report
        runs = first, second
        configs = [with_own_files(open_run(run), run) for run in runs]
        if obstacle := _obstacle(configs, interval):
            sentence = f"{report.verdict.sentence}; not replayed: {obstacle}"
            return replace(report, verdict=replace(report.verdict, sentence=sentence))
        if interval.pair and [side.stack for side in interval.pair] == ["jax", "torch"]:
            configs.reverse()
        return _replayed(report, interval, configs, first)


def _obstacle(configs: Sequence[RunConfig], interval: Interval) -> str | None:
    if any(config.data.format == "chat" for config in configs):
        return "the replay takes rows of text, and these are packed conversations"
    shapes = [{row.name: row.shape for row in parameter_table(config.model)} for config in configs]
    if shapes[0] != shapes[1]:
        return "their models have other tensors"
    if (size := sum(int(np.prod(shape)) for shape in shapes[0].values())) > LARGEST:
        return f"{size:,} parameters are too many to be run twice in float64"
    if interval.pair is None and interval.begun > 0:
        return f"they agree in no checkpoint, and their first common update is {interval.begun}"
    return None


def _replayed(report: Report, interval: Interval, configs: list[RunConfig], run: Path) -> Report:
    """`report` with the verdict of the replay, and its rows before the others."""
    jax.config.update("jax_enable_x64", True)
    config, progress = configs[0], Progress()
    weights: Tensors = initial_parameters(config.model, config.train.seed)
    moments: Mapping[str, Tensors] | None = None
    if interval.pair:
        progress = interval.pair[0].progress
        groups = {
            group: {name: np.asarray(tensors[name], np.float64) for name in tensors}
            for group, tensors in interval.pair[0].groups.items()
        }
        weights, moments = groups.pop("parameters"), groups
    rows, real = _batches(config, progress)
    exact = [_small(c, len(rows[0]), "float64") for c in configs]
    precision = config.precision.compute
    below = [_small(c, len(rows[0]), precision) for c in configs] if precision != "float64" else None
    sides = [{"float64": exact[n]} | ({precision: below[n]} if below else {}) for n in range(2)]
    found = localize_config(
        exact[0],
        weights,
        report.title,
        below[0] if below else None,
        make_torch=lambda c, w: TorchTrainer(sides[0][c.precision.compute], w),
        make_jax=lambda c, w: JaxTrainer(sides[1][c.precision.compute], w),
        feeds=(rows, rows),
        rates=tuple(lambda _, update, c=c: learning_rate(c, update) for c in exact),
        clips=tuple(lambda norm, _, c=c: clip_factor(norm, c.optimizer.clip) for c in exact),
        moments=moments,
        begun=(progress.update, progress.applied),
    )
    start = interval.good or "the initial weights"
    on = "the run's own rows" if real else "random rows (the run's data can't be read here)"
    how = f"replayed from {start} on {on}, {len(rows)} updates"
    if found.verdict.kind == "same":
        sentence = (
            f"{report.verdict.sentence}; {how}: nothing parts, so that what differs isn't in this code but in the "
            f"precision, the device or the code that ran then"
        )
        return replace(report, verdict=replace(report.verdict, sentence=sentence), arrays=report.arrays | found.arrays)
    verdict = replace(found.verdict, sentence=f"{report.verdict.sentence}; {how}: {found.verdict.sentence}")
    return Report(report.title, found.rows + report.rows, verdict, report.arrays | found.arrays, frames=found.frames)


def _small(config: RunConfig, rows: int, precision: str) -> RunConfig:
    """The run's config for a few rows of its batches, on the CPU, in `precision`."""
    kernel = "plain" if precision == "float64" else "auto"
    parts = min(config.train.accumulation, MICRO_BATCHES)
    changes: dict[str, dict[str, Any]] = {
        "train": {"batch_size": rows, "accumulation": parts if rows % parts == 0 else 1},
        "precision": {"compute": precision},
        "execution": {"attention": kernel, "device": "cpu", "compile": "off", "checkpoint_activations": "none"},
    }
    sections = {name: getattr(config, name).model_copy(update=change) for name, change in changes.items()}
    return config.model_copy(update=sections)


def _batches(config: RunConfig, progress: Progress) -> tuple[list[Batch], bool]:
    """(batches, whether they are the run's own): the first rows of the updates that follow the checkpoint."""
    rows = min(config.train.batch_size, MICRO_BATCHES * ROWS)
    left = max(1, min(REPLAYED, config.train.updates - progress.update))
    try:
        data = open_data(config, lambda _: None)
        if progress.data_fingerprint and progress.data_fingerprint != data.fingerprint:
            raise UserError("parity/data-changed", "the data has changed")
        updates = updates_of(data, config)
        return [updates.batch(progress.data_index + n).rows(slice(rows)) for n in range(left)], True
    except (UserError, OSError):
        return batches(config.changed(train__batch_size=rows), left), False

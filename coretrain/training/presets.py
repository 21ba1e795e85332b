"""`preset:NAME` in place of a run's folder: the newest finished run of that preset; without one it is trained first."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.config.load import config_from_json, load_config
from coretrain.config.run import RunConfig
from coretrain.journal.segments import read_segments
from coretrain.processes.launch import launched
from coretrain.training.command_line import Command

RUNS = Path("runs")
WORD = re.compile(r"preset:([A-Za-z0-9._-]+)")
FIELDS = ("train.start", "align.reference", "align.reward", "adapter.base")
"""Where a preset may stand for its run."""
NO_MATTER = ("eval", "journal", "checkpoint", "parallel", "execution", "health")
"""Sections in which a run of a preset may differ from it and still have its weights."""


def with_presets(command: Command, stack_name: str, train: Callable[[str], int]) -> Command:
    """`command` with the folders of finished runs in place of presets' names.

    `train` trains a preset of which runs/ has none that is finished, and says how that ended. Raises `UserError` where
    there is no such preset, or its training came to no end.
    """
    config = command.config
    for field in FIELDS:
        section, _, leaf = field.partition(".")
        said = getattr(getattr(config, section), leaf)
        if said is None or command.resume is not None:
            continue
        runs = {name: str(_run_of(name, field, stack_name, train)) for name in WORD.findall(said)}
        if runs:
            told = WORD.sub(lambda found, runs=runs: runs[found[1]], said)  # type: ignore[misc]
            config = config.changed(**{f"{section}__{leaf}": told})
    return replace(command, config=config)


def _run_of(name: str, field: str, stack_name: str, train: Callable[[str], int]) -> Path:
    preset = load_config(name)
    if found := finished_run(preset, stack_name):
        print(f"{field} = preset:{name}: {found}")
        return found
    if launched():
        raise UserError(
            "training/preset-not-trained",
            f"{field} = preset:{name}: {RUNS} has no finished run of it; train it first, in one process",
        )
    print(f"{field} = preset:{name}: {RUNS} has no finished run of it, so it is trained first", flush=True)
    code = train(name)
    if code or (found := finished_run(preset, stack_name)) is None:
        raise UserError(
            "training/preset-not-finished",
            f"{field} = preset:{name}: its training was not finished; go on with that run first",
        )
    return found


def finished_run(preset: RunConfig, stack_name: str) -> Path | None:
    """The newest finished run of a preset in runs/ that this stack trained, by its name and its fields."""
    wanted, found = _told(preset), list[tuple[float, Path]]()
    for path in RUNS.glob("*/config.json"):
        try:
            config = config_from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # a damaged run is no finished one
            continue
        segments = read_segments(path.parent)
        ended = CheckpointFolder(path.parent / "interchange").newest_sealed()
        if (
            _told(config) == wanted
            and ended is not None
            and ended[1].progress.update == config.train.updates
            and {segment.stack for segment in segments} == {stack_name}
        ):
            found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


def _told(config: RunConfig) -> dict[str, Any]:
    """What of a config makes its weights, but for what a run has from its start, its data or this machine."""
    told: dict[str, Any] = config.model_dump(mode="json")
    for section in NO_MATTER:
        del told[section]
    for field in FIELDS:
        section, _, leaf = field.partition(".")
        told[section][leaf] = None
    told["model"] = {} if config.train.start or config.adapter.kind != "none" else {**told["model"], "vocab": None}
    if config.train.start:  # whose last rate it may be
        told["schedule"]["start_lr"] = None
    told["data"] |= {"tokenizer": None, "chat_template": None}
    told["precision"]["compute"] = None
    return told

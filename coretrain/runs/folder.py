"""A run's folder: where a new one goes, where an old one is, and its config."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import read_bytes
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import MANIFEST, Manifest, read_sealed
from coretrain.config.load import apply_overrides, build_config, config_from_json, fields
from coretrain.config.run import RunConfig

FREE_AT_RESUME = ("data.workers", "data.prepare_processes", "data.cache", "data.validation", "adapter.base")
"""Fields of data and adapter that change nothing of what is trained; a base must have the same fingerprint."""
ROLLOUTS = ("align.epochs", "align.minibatches", "align.group", "align.temperature")
"""Fields by which updates are counted in rollouts, prompts in their order, and log-probabilities those of what was
sampled: a rollout in progress would be cut, asked or weighed otherwise than it was made."""
PLACES = ("data.source", "data.mixture", "data.replay", "data.tokenizer", "data.chat_template")
"""Files that may have moved since a run was trained on them: what is in them has the data's fingerprint."""
Unlike = Mapping[str, tuple[Any, Any]]
"""Fields with their values in a run's config.json, and in its newest checkpoint."""


def run_of(path: Path) -> Path:
    """The run's folder, for a run or for one of its checkpoints. Raises `UserError` where there is no run."""
    hint = "give the folder of a run, as runs/NAME"
    if not path.exists():
        raise UserError("runs/folder-not-found", f"{path} does not exist: {hint}")
    if (path / "config.json").is_file():
        return path
    folder = path.resolve().parent.parent
    if path.resolve().parent.name not in ("checkpoints", "interchange") or not (folder / "config.json").is_file():
        raise UserError("runs/not-a-run", f"{path} holds no run (no config.json): {hint}")
    return folder


def check_newest(path: Path, folder: Path) -> None:
    kept = (CheckpointFolder(folder / kind).complete() for kind in ("checkpoints", "interchange"))
    newest = next((whole[0] for whole in kept if whole), None)
    if newest and path.resolve() != folder.resolve() and path.resolve().name != newest.name:
        raise UserError(
            "runs/resume-not-newest-checkpoint",
            f"{path} is not its run's newest checkpoint, {newest.name}, from which --resume goes on: "
            "to start from an older one, copy the run's folder without the newer ones and resume the copy",
        )


def open_run(folder: Path) -> RunConfig:
    """The config of the run in `folder`.

    Raises `UserError` where there is none, a damaged or newer one, or one that was edited since: its checkpoints say of
    which model, data and adapter they are.
    """
    path = run_of(folder) / "config.json"
    try:
        config = config_from_json(read_bytes(path).decode(), str(path))
    except ValueError as error:
        newest = _newest_sealed(path.parent)
        place = f" (its fields are the config in {newest[0] / MANIFEST})" if newest else ""
        raise UserError(
            "runs/config-damaged", f"{path} is damaged ({error}): restore it{place}, or start a new run"
        ) from None
    if config.precision.compute == "auto":
        raise UserError(
            "runs/compute-not-chosen",
            f"{path} was changed: it says precision.compute = auto, and a run keeps the dtype that was taken: put that "
            "back (float32, bfloat16); --resume takes --precision.compute auto, to choose again",
        )
    checkpoint, unlike = _unlike_sealed(path.parent, config)
    if fixed := {field: values for field, values in unlike.items() if not _may_change(field)}:
        raise UserError(
            "runs/config-not-as-trained",
            f"{path} was changed: it says {_told(fixed, 0)}, and {checkpoint} was trained with {_told(fixed, 1)}: put "
            "that back, or start a new run",
        )
    return config


def changed_since(folder: Path, config: RunConfig) -> Unlike:
    """What of a run's config isn't as its newest checkpoint was trained, though a resume may change it.

    A resume that was stopped before its first save leaves such a config, and so does an editor.
    """
    found = _unlike_sealed(run_of(folder), config)[1]
    return {field: values for field, values in found.items() if _may_change(field)}


def change_told(unlike: Unlike) -> str:
    """`changed_since` in words: what holds now, and what held before."""
    return f"{_told(unlike, 0)}, as config.json or the command says; the checkpoint was trained with {_told(unlike, 1)}"


def _may_change(field: str) -> bool:
    if field.split(".")[0] in ("model", "data", "adapter"):
        return field in FREE_AT_RESUME
    return field not in ROLLOUTS


def _unlike_sealed(run: Path, config: RunConfig) -> tuple[str, Unlike]:
    """The newest checkpoint's name, and the fields that it doesn't have as `config` does."""
    newest = _newest_sealed(run)
    if newest is None:
        return "", {}
    path, sealed = newest
    nothing_seen = not sealed.progress.data_fingerprint  # imported weights: any data may still be theirs
    unlike = {}
    for field in fields():
        ours, theirs = (functools.reduce(getattr, field.split("."), one) for one in (config, sealed.config))
        free = field in PLACES or (nothing_seen and field.startswith("data."))
        if ours != theirs and not free:
            unlike[field] = ours, theirs
    return path.name, unlike


def _newest_sealed(run: Path) -> tuple[Path, Manifest] | None:
    kinds = (CheckpointFolder(run / kind).newest_sealed() for kind in ("checkpoints", "interchange"))
    return next(filter(None, kinds), None)


def check_config(source: Path) -> None:
    """Raise `UserError` where the config.json of a run is damaged, or not that of its checkpoints.

    An export goes by its checkpoint alone: it would leave out in silence what somebody has changed in config.json.
    """
    if (source / "config.json").is_file():
        open_run(source)


def _told(unlike: Unlike, side: int) -> str:
    return ", ".join(f"{field} = {values[side]}" for field, values in unlike.items())


def resumed_config(folder: Path, overrides: Sequence[tuple[str, str]]) -> RunConfig:
    """The run's own config with `overrides`, of which none may make it another training."""
    for key, _ in overrides:
        if not _may_change(key):
            raise UserError(
                "runs/resume-changes-field",
                f"{key} can't change at --resume, since it would be another training: start a new run",
            )
    run = open_run(folder)
    raw = _without_nulls(run.model_dump(mode="json"))
    config = build_config(apply_overrides(raw, overrides), str(folder / "config.json"), overrides)
    sealed = _newest_sealed(folder)
    old, new = (sealed[1].config if sealed else run).optimizer.name, config.optimizer.name
    if old != new and "muon" in (old, new) and _has_moments(folder):
        raise UserError(
            "runs/optimizer-moments-differ",
            f"optimizer.name = {new} keeps other moments than {old}, whose are in {folder}: leave it out, or start a "
            "new run",
        )
    return config


def _has_moments(run: Path) -> bool:
    """Whether a run has moments to go on with: imported weights have none."""
    if CheckpointFolder(run / "checkpoints").complete():
        return True
    imported = CheckpointFolder(run / "interchange").complete()
    return bool(imported) and len(read_sealed(imported[0]).tensors) > 1


def _without_nulls(raw: dict[str, object]) -> dict[str, object]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if value is not None
    }

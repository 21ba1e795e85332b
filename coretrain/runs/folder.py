"""A run's folder: where a new one goes, where an old one is, and its config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.parse import read_bytes
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import read_sealed
from coretrain.config.load import apply_overrides, build_config, config_from_json
from coretrain.config.run import RunConfig

FREE_AT_RESUME = ("data.workers", "data.prepare_processes", "data.cache", "adapter.base")
"""Fields of data and adapter that change nothing of what is trained; a base must have the same fingerprint."""


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
    """The config of the run in `folder`. Raises `UserError` where there is none, or a damaged or newer one."""
    path = run_of(folder) / "config.json"
    try:
        return config_from_json(read_bytes(path).decode())
    except ValueError as error:
        raise UserError("runs/config-damaged", f"{path} is damaged ({error}): restore it, or start a new run") from None


def resumed_config(folder: Path, overrides: Sequence[tuple[str, str]]) -> RunConfig:
    """The run's own config with `overrides`, of which none may make it another training."""
    for key, _ in overrides:
        if key.split(".")[0] in ("model", "data", "adapter") and key not in FREE_AT_RESUME:
            raise UserError(
                "runs/resume-changes-field",
                f"{key} can't change at --resume, since it would be another training: start a new run",
            )
    run = open_run(folder)
    raw = _without_nulls(run.model_dump(mode="json"))
    config = build_config(apply_overrides(raw, overrides), str(folder / "config.json"), overrides)
    old, new = run.optimizer.name, config.optimizer.name
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

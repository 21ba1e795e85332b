"""Checkpoints: a run's folder of them, and the interchange form of any stack's state.

Either stack's native checkpoints are folders sealed by a manifest (`manifest.py`). The interchange checkpoint
adds an index of tensors in safetensors shards, by canonical name: any stack reads it, on any topology.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from coretrain.adapters.targets import trainable_parameters
from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import folder_beside
from coretrain.base.safetensors import TensorWriter
from coretrain.checkpoint.folder import CheckpointFolder, _put
from coretrain.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    Progress,
    seal,
    verify,
)
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import check_rows

DTYPES = ("float32", "float64")


class Tensors(Mapping[str, Array]):
    """One group of an interchange checkpoint: each tensor is read from its shard when it is asked for."""

    def __init__(self, folder: Path, index: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder, self.index = folder, index

    def __getitem__(self, name: str) -> Array:
        path = self._folder / self.index[name]["file"]
        try:
            with safe_open(path, framework="np") as shard:
                tensor: Array = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DamagedCheckpoint("checkpoint/weights-unreadable", f"{path} can't be read: {error}") from None
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.index  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.index)

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Interchange:
    """An interchange checkpoint, its tensors still on disk."""

    config: RunConfig
    groups: dict[str, Tensors]
    """`parameters`, and where there are moments `first_moment`, `second_moment` and, for Muon, `momentum`."""
    progress: Progress
    stack: str
    folder: Path


def save_interchange(
    folder: Path,
    config: RunConfig,
    groups: Mapping[str, Mapping[str, Array]],
    progress: Progress,
    stack: str,
    shard_bytes: int = 2**31,
) -> None:
    """Write tensors by group and canonical name, float32 or float64, and all that a run needs to go on.

    Whole or not at all: written beside `folder`, flushed, renamed. `groups` may be lazy: one tensor is held at a time.
    Raises `UserError` where names, shapes or dtypes aren't the parameter table's, or `folder` holds something else,
    and OSError on a full disk.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise UserError(
            "checkpoint/target-not-a-checkpoint", f"{folder} exists and is no checkpoint: choose another folder"
        )
    with folder_beside(folder) as temporary:
        index = {group: _write_group(temporary, group, tensors, shard_bytes) for group, tensors in groups.items()}
        _check_index(config, index, "the state to save")
        seal(temporary, progress, config, stack, index)
        _put(temporary, folder)


def _write_group(folder: Path, group: str, tensors: Mapping[str, Array], limit: int) -> dict[str, dict[str, Any]]:
    """A group's shards, each of at most `limit` bytes or one tensor; what is where in them, by name."""
    names, index, shards = list(tensors), {}, 0
    writer: TensorWriter | None = None
    with contextlib.ExitStack() as opened:
        for at, name in enumerate(names):
            value = np.ascontiguousarray(tensors[name])
            if str(value.dtype) not in DTYPES:
                raise UserError(
                    "checkpoint/interchange-dtype-wrong",
                    f"{name} is {value.dtype}: an interchange checkpoint holds {' or '.join(DTYPES)}",
                )
            if writer is None or writer.filled + value.nbytes > limit:
                opened.close()
                shards += 1
                file = f"{group}-{shards:05d}.safetensors"
                writer = opened.enter_context(TensorWriter(folder / file, names[at:]))
            writer.add(name, value)
            index[name] = {"file": file, "dtype": str(value.dtype), "shape": list(value.shape)}
            del value  # not two at once
    return index


def _check_index(config: RunConfig, index: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Names and shapes against the table: all that trains, and each parameter's moments at most once a group."""
    try:
        shapes = {
            group: {name: np.broadcast_to(np.float32(0), facts["shape"]) for name, facts in tensors.items()}
            for group, tensors in index.items()
        }
    except ValueError:
        raise DamagedCheckpoint(
            "checkpoint/shape-too-large", f"{where} is damaged: its index has an impossible shape"
        ) from None
    parameters = shapes.get("parameters", {})
    table = trainable_parameters(config)
    check_rows(table, parameters, f"{where} (group parameters)")
    for group, tensors in shapes.items():
        check_rows(table, parameters | tensors, f"{where} (group {group})")


def load_interchange(folder: Path) -> Interchange:
    """Open an interchange checkpoint after checking every file; its tensors are read one at a time, on demand.

    Raises as `verify` does, and `UserError` when the folder is a native checkpoint or doesn't fit its own config.
    """
    manifest = verify(folder)
    if "parameters" not in manifest.tensors:
        raise UserError(
            "checkpoint/not-interchange",
            f"{folder} is a native {manifest.stack} checkpoint, not an interchange one",
        )
    _check_index(manifest.config, manifest.tensors, str(folder))
    groups = {group: Tensors(folder, index) for group, index in manifest.tensors.items()}
    return Interchange(manifest.config, groups, manifest.progress, manifest.stack, folder)


def interchange_of(run: Path, name: str) -> Path:
    """Where a run keeps the interchange form of its checkpoint `name` (`update-00000200`)."""
    return run / "interchange" / name


def newest_interchange(run: Path) -> Path:
    """The newest interchange checkpoint of a run's folder, or `run` itself if it is one. Raises `UserError` if none.

    It may be damaged, which whoever opens it is told: an older one isn't what was asked for.
    """
    if (run / MANIFEST).is_file():
        return run
    if found := CheckpointFolder(run / "interchange").found():
        return found[0]
    if not run.exists():
        raise UserError(
            "checkpoint/run-not-found",
            f"{run} does not exist: give the folder of a run, or of an interchange checkpoint",
        )
    raise UserError(
        "checkpoint/no-interchange-in-run",
        f"{run} has no interchange checkpoint (a run writes one into {run / 'interchange'} when it ends): "
        "finish the run, or give the folder of a checkpoint",
    )

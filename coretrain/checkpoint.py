"""Checkpoints: a run's folder of them, and the interchange form of any stack's state.

Either stack's native checkpoints are folders sealed by a manifest (`coretrain/manifest.py`). The interchange checkpoint
adds an index of tensors in safetensors shards, by canonical name: any stack reads it, on any topology.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from coretrain.adapters import trained_table
from coretrain.config import RunConfig
from coretrain.data import files
from coretrain.data.files import sync_folder
from coretrain.errors import UserError
from coretrain.manifest import MANIFEST, DamagedCheckpoint, Manifest, Progress, read_sealed, seal, verify
from coretrain.parameters import Array, check_rows
from coretrain.safetensors_file import TensorWriter
from coretrain.world import PeerError, World

__all__ = [
    "CheckpointFolder",
    "DamagedCheckpoint",
    "Interchange",
    "Manifest",
    "Progress",
    "interchange_of",
    "load_interchange",
    "newest_interchange",
    "read_sealed",
    "save_interchange",
    "seal",
    "verify",
    "write_atomically",
]

BEST, PINNED = "best.json", ".pinned"
TEMPORARY = ".tmp-"
FOLDER_NAME = re.compile(r"update-(\d{8,})(\.old)?")
DTYPES = ("float32", "float64")

Result = TypeVar("Result")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that it is whole or absent, and lasts through a power cut."""
    files.write_atomically(path, content.encode() if isinstance(content, str) else content)


class CheckpointFolder:
    """The checkpoints of one run, `update-00000200` and so on, in one folder. Reading never changes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def complete(self) -> list[Path]:
        """Checkpoints that count (those with a manifest), newest first."""
        found = []
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if (match := FOLDER_NAME.fullmatch(path.name)) and (path / MANIFEST).is_file():
                found.append((int(match[1]), match[2] is None, path))
        return [path for _, _, path in sorted(found, reverse=True)]

    def final(self, update: int) -> Path:
        """Where the checkpoint after `update` updates lies, once it is complete."""
        return self.path / f"update-{update:08d}"

    def begin(self, update: int) -> Path:
        """An empty temporary folder to write the checkpoint into; what a killed run left behind is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for stale in self.path.glob(f"{TEMPORARY}*"):
            _delete(stale)
        folder = self.temporary(update)
        folder.mkdir()
        return folder

    def temporary(self, update: int) -> Path:
        """Where the checkpoint after `update` updates is written, before it is complete."""
        return self.path / f"{TEMPORARY}update-{update:08d}"

    def abandon(self, temporary: Path) -> None:
        """Remove what `begin` gave, after a save that failed; earlier checkpoints are untouched."""
        for _ in range(100):  # others may still be writing into it: once it is gone, they can't
            _delete(temporary)
            if not temporary.exists():
                return
            time.sleep(0.05)

    def commit(self, temporary: Path, update: int) -> Path:
        """Give a sealed temporary folder its name, in place of an older checkpoint after as many updates."""
        final = self.final(update)
        _put(temporary, final)
        return final

    def note_best(self, update: int, val_loss: float) -> None:
        """Remember the checkpoint with the lowest validation loss, so that `prune` keeps it."""
        write_atomically(self.path / BEST, json.dumps({"update": update, "val_loss": val_loss}))

    def best(self) -> Path | None:
        """The checkpoint that `note_best` named, if it is there."""
        try:
            path = self.final(json.loads((self.path / BEST).read_bytes())["update"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if (path / MANIFEST).is_file() else None

    def pin(self, name: str, fingerprint: str) -> None:
        """Remember that adapters stand on the weights of the checkpoint `name`, so that `prune` keeps it.

        In a file of its own, `update-00000200.pinned`: runs that begin at the same time don't undo each other's.
        """
        write_atomically(self.path / f"{name}{PINNED}", fingerprint)

    def pins(self) -> dict[str, str]:
        """Fingerprints of the weights that `pin` was given, by the checkpoint's name."""
        return {path.stem: path.read_text(errors="replace") for path in self.path.glob(f"*{PINNED}")}

    def prune(self, keep: int) -> None:
        """Remove all complete checkpoints but the newest `keep`, the best, and those that are pinned."""
        best, pinned = self.best(), self.pins()
        for path in self.complete()[keep:]:
            if path != best and path.name not in pinned:
                _delete(path)

    def first_that_loads(
        self,
        loader: Callable[[Path, Progress], Result],
        say: Callable[[str], None],
        world: World | None = None,
        best_first: bool = False,
    ) -> tuple[Path, Result]:
        """The newest checkpoint that is whole, or the best one before it, with what `loader(folder, progress)` makes.

        A damaged one is passed over with a warning through `say`. Raises `UserError` when none is left, and whatever
        else the loader raises (a checkpoint of another model is a mistake, not damage). With a `world`, each
        process checks a part of the files, and a checkpoint that is damaged for one is passed over by all.
        """
        world = world or World()
        best = self.best() if best_first else None
        order = sorted(self.complete(), key=lambda path: path != best)
        for name in world.told("\n".join(path.name for path in order)).split():
            path = self.path / name
            damage, result = "", None
            try:
                manifest = world.together(functools.partial(self._seen, path, world))
                result = world.together(functools.partial(loader, path, manifest.progress))
            except (DamagedCheckpoint, PeerError) as fault:
                damage = str(fault)
                if world.size > 1 and not world.any(isinstance(fault, DamagedCheckpoint)):
                    raise
            if not damage:
                return path, result  # type: ignore[return-value]  # the loader's own result
            say(f"skipping checkpoint {path.name}: {damage}")
        raise UserError(f"no usable checkpoint in {self.path}: start the run anew, or restore one there")

    def _seen(self, path: Path, world: World) -> Manifest:
        if not path.is_dir():
            raise UserError(f"{path} is not there for every process: put the run on a file system that all hosts share")
        return verify(path, world.rank, world.size)


def _delete(folder: Path) -> None:
    """Remove a folder so that, if interrupted, what is left doesn't look like a checkpoint."""
    if not folder.name.startswith(TEMPORARY):
        aside = folder.with_name(f"{TEMPORARY}{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder = folder.rename(aside)
    shutil.rmtree(folder, ignore_errors=True)


def _put(temporary: Path, final: Path) -> None:
    """Rename a finished folder to `final`. What lay there keeps counting, as `.old`, until that is done."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        if old.exists():
            _delete(old)
        final.rename(old)
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(final.parent)
    if old.exists():
        _delete(old)


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
            raise DamagedCheckpoint(f"{path} can't be read: {error}") from None
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
        raise UserError(f"{folder} exists and is no checkpoint: choose another folder")
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        index = {group: _write_group(temporary, group, tensors, shard_bytes) for group, tensors in groups.items()}
        _check_index(config, index, "the state to save")
        seal(temporary, progress, config, stack, index)
        _put(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_group(folder: Path, group: str, tensors: Mapping[str, Array], limit: int) -> dict[str, dict[str, Any]]:
    """A group's shards, each of at most `limit` bytes or one tensor; what is where in them, by name."""
    names, index, shards = list(tensors), {}, 0
    writer: TensorWriter | None = None
    with contextlib.ExitStack() as opened:
        for at, name in enumerate(names):
            value = np.ascontiguousarray(tensors[name])
            if str(value.dtype) not in DTYPES:
                raise UserError(f"{name} is {value.dtype}: an interchange checkpoint holds {' or '.join(DTYPES)}")
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
    shapes = {
        group: {name: np.broadcast_to(np.float32(0), facts["shape"]) for name, facts in tensors.items()}
        for group, tensors in index.items()
    }
    parameters = shapes.get("parameters", {})
    table = trained_table(config)
    check_rows(table, parameters, f"{where} (group parameters)")
    for group, tensors in shapes.items():
        check_rows(table, parameters | tensors, f"{where} (group {group})")


def load_interchange(folder: Path) -> Interchange:
    """Open an interchange checkpoint after checking every file; its tensors are read one at a time, on demand.

    Raises as `verify` does, and `UserError` when the folder is a native checkpoint or doesn't fit its own config.
    """
    manifest = verify(folder)
    if "parameters" not in manifest.tensors:
        raise UserError(f"{folder} is a native {manifest.stack} checkpoint, not an interchange one")
    _check_index(manifest.config, manifest.tensors, str(folder))
    groups = {group: Tensors(folder, index) for group, index in manifest.tensors.items()}
    return Interchange(manifest.config, groups, manifest.progress, manifest.stack, folder)


def interchange_of(run: Path, name: str) -> Path:
    """Where a run keeps the interchange form of its checkpoint `name` (`update-00000200`)."""
    return run / "interchange" / name


def newest_interchange(run: Path) -> Path:
    """The newest interchange checkpoint of a run's folder, or `run` itself if it is one. Raises `UserError` if none."""
    if (run / MANIFEST).is_file():
        return run
    if found := CheckpointFolder(run / "interchange").complete():
        return found[0]
    if not run.exists():
        raise UserError(f"{run} does not exist: give the folder of a run, or of an interchange checkpoint")
    raise UserError(
        f"{run} has no interchange checkpoint (a run writes one into {run / 'interchange'} when it ends): "
        "finish the run, or give the folder of a checkpoint"
    )

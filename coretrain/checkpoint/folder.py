"""A folder of checkpoints: the newest whole one, the best one, and which are kept."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from coretrain.base.errors import UserError
from coretrain.base.files import sync_folder, write_atomically
from coretrain.base.parse import from_json, read_bytes
from coretrain.checkpoint.manifest import (
    MANIFEST,
    DamagedCheckpoint,
    Manifest,
    Progress,
    read_sealed,
    verify,
)
from coretrain.processes.world import PeerError, World

BEST, PINNED = "best.json", ".pinned"
TEMPORARY = ".tmp-"
FOLDER_NAME = re.compile(r"update-(\d{8,})(\.old)?")
Result = TypeVar("Result")


class CheckpointFolder:
    """The checkpoints of one run, `update-00000200` and so on, in one folder. Reading never changes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def complete(self) -> list[Path]:
        """Checkpoints that count (those with a manifest), newest first."""
        return [path for path in self.found() if (path / MANIFEST).is_file()]

    def found(self) -> list[Path]:
        """All that were once complete, newest first: one that has lost its manifest is damaged, not absent.

        A folder takes its name after its manifest is written, and gives it up before anything in it is deleted.
        """
        found = []
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if (match := FOLDER_NAME.fullmatch(path.name)) and path.is_dir():
                found.append((int(match[1]), match[2] is None, path))
        return [path for _, _, path in sorted(found, reverse=True)]

    def newest_sealed(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint whose manifest is whole, and that; its other files aren't looked at."""
        for path in self.complete():
            with contextlib.suppress(DamagedCheckpoint):
                return path, read_sealed(path)
        return None

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
        """The checkpoint with the lowest validation loss, if it is there: as the newest says, or else `note_best`."""
        try:
            noted = self.final(from_json(read_bytes(self.path / BEST))["update"])
        except (OSError, ValueError, KeyError, TypeError):
            noted = None
        return next((path for path in (self._sealed_best(), noted) if path and path.is_dir()), None)

    def _sealed_best(self) -> Path | None:
        """Where the best checkpoint must be, by the newest manifest, which a checksum guards; None: it doesn't say."""
        newest = self.newest_sealed()
        if newest is None or not newest[1].config.checkpoint.keep_best or newest[1].progress.best is None:
            return None
        return self.final(newest[1].progress.best["update"])

    def pin(self, name: str, fingerprint: str) -> None:
        """Remember that adapters stand on the weights of the checkpoint `name`, so that `prune` keeps it.

        In a file of its own, `update-00000200.pinned`: runs that begin at the same time don't undo each other's.
        """
        write_atomically(self.path / f"{name}{PINNED}", fingerprint)

    def pins(self) -> dict[str, str]:
        """Fingerprints of the weights that `pin` was given, by the checkpoint's name."""
        return {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in self.path.glob(f"*{PINNED}")}

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
        order = self.found()
        if best_first:
            best, newest = self.best(), self.newest_sealed()
            if best is None and (lost := self._sealed_best()):
                say(f"{lost.name}, the run's best checkpoint, isn't there any more: the newest is taken")
            # those without a whole manifest stay in front, to be said: they may have named another as the best
            unread = order
            if newest:  # one that isn't listed was saved just now, by a run that goes on
                unread = order[: order.index(newest[0])] if newest[0] in order else []
            order = sorted(order, key=lambda path: (path not in unread, path != best))
        for name in world.broadcast("\n".join(path.name for path in order)).split():
            path = self.path / name
            damage, result = "", None
            try:
                manifest = world.collectively(functools.partial(self._seen, path, world))
                result = world.collectively(functools.partial(loader, path, manifest.progress))
            except (DamagedCheckpoint, PeerError) as fault:
                damage = str(fault)
                if world.size > 1 and not world.any(isinstance(fault, DamagedCheckpoint)):
                    raise
            if not damage:
                return path, result  # type: ignore[return-value]  # the loader's own result
            say(f"skipping checkpoint {path.name}: {damage}")
        raise UserError(
            "checkpoint/no-usable-checkpoint",
            f"no usable checkpoint in {self.path}: start the run anew, or restore one there",
        )

    def _seen(self, path: Path, world: World) -> Manifest:
        if not path.is_dir():
            raise UserError(
                "checkpoint/folder-not-shared",
                f"{path} is not there for every process: put the run on a file system that all hosts share",
            )
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

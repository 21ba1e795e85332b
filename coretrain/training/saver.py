"""A checkpoint on its way: written by all processes, hashed by all, in the background, and sealed by the first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from coretrain.base.files import sha256_of
from coretrain.base.threads import in_background
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress, digests, seal
from coretrain.config.run import RunConfig
from coretrain.journal.journal import Journal
from coretrain.processes.world import World
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.training.stack import Saves

ARRAYS = "align.safetensors"
"""What a source of batches keeps in a checkpoint beside the state, such as the rollout in progress."""


class Saver:
    """The checkpoints of one run, one under way at a time. All processes call every method, in step."""

    def __init__(
        self,
        config: RunConfig,
        stack: Saves,
        checkpoints: CheckpointFolder,
        journal: Journal,
        world: World,
        at: Callable[[str], None],
    ) -> None:
        self.config, self.stack, self.checkpoints, self.journal = config, stack, checkpoints, journal
        self.world, self.at = world, at
        self._pending: tuple[Path, Progress] | None = None
        self._writing: Future[None] | None = None
        self._hashing: Future[dict[str, dict[str, Any]]] | None = None

    def start(self, progress: Progress, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Start to write the stack's present state; what was under way before is finished first.

        `arrays` are what the source of batches keeps; every process has the same, and the first writes them.
        """
        self.finish()
        self.at(f"the save after update {progress.update}")
        self.world.on_rank0(lambda: self._begin(progress.update, arrays or {}))
        folder = self.checkpoints.temporary(progress.update)
        self._pending = folder, progress
        try:
            self._writing = self.world.collectively(lambda: self.stack.save(folder))
        except BaseException:
            self._abandon()
            raise

    def finish(self, wait: bool = True) -> None:
        """Make the checkpoint under way count, once all of it is on disk; without `wait` only if it already is."""
        if self._pending is None:
            return
        folder, progress = self._pending
        try:
            self._end_writing(wait)
            if self._hashing and self.world.ended(self._hashing, wait):
                self.at(f"the seal of the save after update {progress.update}")
                self._seal(folder, progress, self._hashing.result())
                self._pending = self._hashing = None
        except BaseException:
            self._abandon()
            raise

    def make_way(self) -> None:
        """Before the state changes: wait, all in step, for what is still written from where it lies.

        A process whose own part has failed would never come to hear it from one that waits in its update alone.
        """
        if self._writing and self.stack.writes_in_place:
            try:
                self._end_writing(wait=True)
            except BaseException:
                self._abandon()
                raise

    def _end_writing(self, wait: bool) -> None:
        """Begin to hash, each its part of what all have written, once that has ended."""
        assert self._pending
        folder, progress = self._pending
        if wait:
            self.at(f"the end of the save after update {progress.update}")
        if self._writing and self.world.ended(self._writing, wait):
            self._writing = None
            self._hashing = in_background(lambda: digests(folder, self.world.rank, self.world.size))

    def _begin(self, update: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        folder = self.checkpoints.begin(update)
        if arrays:
            save_file(dict(arrays), folder / ARRAYS)

    def _seal(self, folder: Path, progress: Progress, mine: dict[str, dict[str, Any]]) -> None:
        parts = self.world.gather(json.dumps(mine))
        files = {name: facts for part in parts for name, facts in json.loads(part).items()}
        self.world.on_rank0(lambda: self._commit(folder, progress, files))

    def _commit(self, folder: Path, progress: Progress, files: dict[str, dict[str, Any]]) -> None:
        """Seal what all processes have written, give it its name, and remove what need not be kept."""
        template = self.checkpoints.path.parent / CHAT_TEMPLATE
        beside = {CHAT_TEMPLATE: sha256_of(template)} if template.is_file() else None
        seal(folder, progress, self.config, self.stack.name, files=files, beside=beside)
        path = self.checkpoints.commit(folder, progress.update)
        if progress.best and progress.best["update"] == progress.update and self.config.checkpoint.keep_best:
            self.checkpoints.note_best(progress.update, progress.best["val_loss"])
        self.checkpoints.prune(self.config.checkpoint.keep)
        self.journal.event(progress.update, "checkpoint", str(path))

    def _abandon(self) -> None:
        """Remove what a failed save has written; earlier checkpoints stay as they are."""
        if self._pending and self.world.first:
            self.checkpoints.abandon(self._pending[0])
        self._pending = self._writing = self._hashing = None


def kept_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """The arrays that a source keeps in the checkpoint `folder`, whose files have been checked; {} without any."""
    path = folder / ARRAYS
    return load_file(path) if path.is_file() else {}

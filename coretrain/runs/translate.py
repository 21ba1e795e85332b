"""A run's best checkpoint in the interchange form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import Interchange, interchange_of, load_interchange, newest_interchange
from coretrain.checkpoint.manifest import Progress, read_sealed
from coretrain.checkpoint.translate import translate, translated


def best_interchange(folder: Path, say: Callable[[str], None]) -> Interchange:
    """A run's best checkpoint, else its newest, in the interchange form, which is made where it isn't there.

    A damaged one is passed over with a warning through `say`.
    """
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if not checkpoints.found():
        return load_interchange(newest_interchange(folder))

    def load(path: Path, progress: Progress) -> Interchange:
        if not translated(folder, path.name):
            translate(read_sealed(path).stack, folder, path.name)
        return load_interchange(interchange_of(folder, path.name))

    return checkpoints.first_that_loads(load, say, best_first=True)[1]

"""A native checkpoint as an interchange one, made by the stack that wrote it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from coretrain.checkpoint import (
    CheckpointFolder,
    Interchange,
    Progress,
    load_interchange,
    newest_interchange,
    read_sealed,
)
from coretrain.errors import UserError
from coretrain.spawn import environment_alone

MODULES = {"torch": "torchtrain", "jax": "jaxtrain"}


def translate(stack_name: str, folder: Path, name: str) -> None:
    """Have the stack that wrote a native checkpoint turn it into the interchange form, in a process of its own."""
    command = [sys.executable, "-m", f"{MODULES[stack_name]}.checkpoint", str(folder), name]
    result = subprocess.run(command, capture_output=True, text=True, env=environment_alone())
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{folder.name}/{name} was written by {stack_name} and could not be translated: {last}")


def best_interchange(folder: Path, say: Callable[[str], None]) -> Interchange:
    """A run's best checkpoint, else its newest, in the interchange form, which is made where it isn't there.

    A damaged one is passed over with a warning through `say`.
    """
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if not checkpoints.complete():
        return load_interchange(newest_interchange(folder))

    def load(path: Path, progress: Progress) -> Interchange:
        translated = folder / "interchange" / path.name
        if not translated.exists() or read_sealed(translated).progress != progress:
            translate(read_sealed(path).stack, folder, path.name)
        return load_interchange(translated)

    return checkpoints.first_that_loads(load, say, best_first=True)[1]

"""A native checkpoint as an interchange one, made by the stack that wrote it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.locks import LOCK, locked
from coretrain.checkpoint.manifest import DamagedCheckpoint, read_sealed
from coretrain.processes.launch import environment_alone

MODULES = {"torch": "torchtrain", "jax": "jaxtrain"}


def translated(folder: Path, name: str) -> bool:
    """Whether a run has the interchange form of its native checkpoint `name`, of the same progress."""
    path = folder / "interchange" / name
    try:
        return path.exists() and read_sealed(path).progress == read_sealed(folder / "checkpoints" / name).progress
    except DamagedCheckpoint:
        return False


def translate(stack_name: str, folder: Path, name: str) -> None:
    """Have the stack that wrote a native checkpoint turn it into the interchange form, in a process of its own.

    Of several processes that ask for the same one at once, the first makes it and the others wait.
    """
    place = folder / "interchange"
    place.mkdir(exist_ok=True)
    with locked(place / LOCK):
        if translated(folder, name):
            return
        command = [sys.executable, "-m", f"{MODULES[stack_name]}.checkpoint", str(folder), name]
        result = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", env=environment_alone()
        )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            "checkpoint/translation-failed",
            f"{folder.name}/{name} was written by {stack_name} and could not be translated: {last}",
        )

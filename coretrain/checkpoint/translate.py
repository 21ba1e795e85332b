"""A native checkpoint as an interchange one, made by the stack that wrote it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.processes.launch import environment_alone

MODULES = {"torch": "torchtrain", "jax": "jaxtrain"}


def translate(stack_name: str, folder: Path, name: str) -> None:
    """Have the stack that wrote a native checkpoint turn it into the interchange form, in a process of its own."""
    command = [sys.executable, "-m", f"{MODULES[stack_name]}.checkpoint", str(folder), name]
    result = subprocess.run(command, capture_output=True, text=True, env=environment_alone())
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            "checkpoint/translation-failed",
            f"{folder.name}/{name} was written by {stack_name} and could not be translated: {last}",
        )

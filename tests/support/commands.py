"""The repository's folder, and its scripts as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """That of a process which finds the repository's packages, and `tests.support`, wherever it is started."""
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)} | more


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A script of scripts/ from its start to its end, with what it said."""
    command = [sys.executable, f"scripts/{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240)


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command that brings models in and out."""
    return script("convert", *arguments)

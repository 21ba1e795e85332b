"""Recording: each file of tests in a fork of its own, so that it shows all that it executes by itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from parity.mutation.worker import Worker

LIMIT = 1800.0
"""Seconds of a processor for one file."""


def record(
    root: Path, folder: Path, files: Iterable[str], expression: str, compiled: Path
) -> Iterator[tuple[str, str]]:
    """Run the files under `recorder.py`; gives each with a few words on how it went."""
    options = ["-p", "parity.mutation.recorder", *(("-m", expression) if expression else ())]
    with Worker(root, compiled) as worker:
        for file in files:
            part = file.replace("/", "-").removesuffix(".py")
            begun = time.monotonic()
            where = {"MUTANTS_LINES": str(folder.resolve()), "MUTANTS_PART": part}
            found = worker.run([file], LIMIT, options=options, environment=where)
            how = f"{found.get('done', 0)} passed"
            if "failed" in found:
                how = f"{found['failed']} failed: {found['kind']}: {found['words']}"
            yield file, f"{how}, {time.monotonic() - begun:.0f} s"

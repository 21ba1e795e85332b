"""Recording: each file of tests in a fork of its own, so that it shows all that it executes by itself."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from parity.mutation.sample import CORE_TESTS
from parity.mutation.seen import NO_JUDGES
from parity.mutation.worker import Worker

LIMIT = 1800.0
"""Seconds of a processor for one file."""


def files_of_tests(root: Path, words: Sequence[str]) -> list[str]:
    """Files of tests under these folders and files, `core` being `CORE_TESTS`; default: all."""
    found: set[str] = set()
    named = [name for word in words for name in (CORE_TESTS if word == "core" else (word,))]
    for word in named or ("parity/ladder", "tests"):
        path = root / word
        found.update(p.relative_to(root).as_posix() for p in ([path] if path.is_file() else path.rglob("test_*.py")))
    return sorted(name for name in found if not name.startswith(NO_JUDGES))


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

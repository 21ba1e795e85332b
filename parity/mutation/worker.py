"""A worker: a copy of the tree, and the server that judges mutants in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parity.machine import ONE_PIECE, xla_flags

PACKAGES = (
    "coretrain",
    "torchtrain",
    "jaxtrain",
    "parity",
    "twintrain",
    "tests",
    "scripts",
    "bench",
    "configs",
    "docs",
)
FILES = ("conftest.py", "pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE", "CHANGELOG.md", "setup.py")
PATIENCE = 10.0
"""Seconds in which a server that has nothing to do ends."""
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".mypy_cache", ".ruff_cache", "*.png")


def copy_tree(root: Path, to: Path) -> None:
    """What tests need of a checkout."""
    for name in PACKAGES:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=LEFT_OUT)
    for name in FILES:
        if (root / name).is_file():
            shutil.copy2(root / name, to / name)


class Worker:
    """Takes jobs; used with `with`. `compiled` is the folder for what JAX has compiled, shared by all workers."""

    def __init__(self, root: Path, compiled: Path | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        try:
            copy_tree(root, self.folder)
            self._start(root, compiled)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _start(self, root: Path, compiled: Path | None) -> None:
        others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and Path(p).resolve() != root]
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = os.environ | one | {"PYTHONPATH": os.pathsep.join([str(self.folder), *others])}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "XLA_FLAGS": xla_flags(unless_set=ONE_PIECE)}
        if compiled is not None:
            compiled.mkdir(parents=True, exist_ok=True)
            environment["MUTANTS_COMPILED"] = str(compiled.resolve())
        self._process = subprocess.Popen(
            [sys.executable, "-P", "parity/mutation/serve.py"],
            cwd=self.folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of mutants has ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(
        self,
        tests: Sequence[str],
        seconds: float,
        file: str | None = None,
        text: str | None = None,
        options: Sequence[str] = ("-x",),
        environment: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Run `tests` with `file` as `text`: the verdict, as `serve.judged` gives it. `seconds` is the limit."""
        job: dict[str, Any] = {"tests": list(tests), "file": file, "text": text, "options": list(options)}
        job |= {"environment": dict(environment or {}), "seconds": 3 * seconds, "cpu": int(seconds) + 1}
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # it is in the middle of a job, and ends that too
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

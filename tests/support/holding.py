"""A folder that another process holds."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.support.commands import environment

HOLD = """
import sys
from pathlib import Path
from coretrain.base.locks import held
with held(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""
FORKED = """
import os, sys
from pathlib import Path
from coretrain.base.locks import held
with held(Path(sys.argv[1]), print):
    worker = os.fork()
    if worker:
        os.waitpid(worker, 0)
    else:
        print("held", flush=True)
        sys.stdin.read()
        print("the worker ends", flush=True)
        os._exit(0)
"""
"""As `HOLD`, with a worker that lives on where its parent is killed."""


@contextlib.contextmanager
def busy(folder: Path, program: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """The folder, held by another process until its input is closed, as it is at the end of the block."""
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment()) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()

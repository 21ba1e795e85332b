"""Standard input and output, so that no text and no terminal ends a program."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def ready_streams() -> None:
    """Show a character that the terminal's encoding lacks as `?`, and go on where an output is closed (`>&-`).

    Standard error escapes such characters by itself. What is written to files is UTF-8 everywhere.
    """
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for as long as the process lives
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # the same
    _replacing(sys.stdout)


def ready_input() -> None:
    """Read bytes that are no text in the terminal's encoding as U+FFFD."""
    _replacing(sys.stdin)


def _replacing(stream: object) -> None:
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        with contextlib.suppress(io.UnsupportedOperation):  # input that was read from already
            stream.reconfigure(errors="replace")

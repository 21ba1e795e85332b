"""`twintrain chat`: questions to a run, by its chat template: those on the line, or each that is typed."""

from __future__ import annotations

from collections.abc import Sequence

from twintrain import generate


def main(argv: Sequence[str] | None = None, program: str = "twintrain chat") -> int:
    """Answer."""
    return generate.main(argv, program, chat=True)

"""`python -m torchtrain.run [CONFIG] [--section.field value ...]`: train in PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.errors import RESUME, exits_cleanly
from coretrain.base.interrupts import loading_modules
from coretrain.training.help import asks_for_help, print_help


def main(argv: Sequence[str] | None = None, program: str = "") -> int:
    """Train, or go on with `--resume RUN`; see `--help`. `program` is what was typed."""
    words = sys.argv[1:] if argv is None else argv
    if asks_for_help(words):  # before the framework is imported, which takes seconds
        print_help(program or "python -m torchtrain.run", "Train a GPT.")
        return 0
    with loading_modules():
        from coretrain.training.runner import run
        from torchtrain.parallel.choose import make_trainer
        from torchtrain.parallel.processes import join

    return run(words, "torch", make_trainer, join, program)


if __name__ == "__main__":
    exits_cleanly(main, RESUME)()

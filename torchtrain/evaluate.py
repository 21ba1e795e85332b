"""`python -m torchtrain.evaluate RUN --tasks ...`: how good a trained run is."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.base.errors import exits_cleanly
from coretrain.base.interrupts import loading_modules
from coretrain.inference.evaluate_options import options
from coretrain.training.help import asks_for_help


def main(argv: Sequence[str] | None = None, program: str = "") -> int:
    """Tell a run's figures; see `--help`. `program` is what was typed."""
    words = sys.argv[1:] if argv is None else argv
    if asks_for_help(words):  # before the framework is imported, which takes seconds
        options(program or "python -m torchtrain.evaluate").print_help()
        return 0
    with loading_modules():
        from coretrain.inference.evaluate import evaluate_run
        from torchtrain.trainer import Trainer

    evaluate_run(words, "torch", Trainer, program)
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()

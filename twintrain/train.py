"""`twintrain train`: train a new run or go on with one, in the stack that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.training.help import asks_for_help, print_help
from twintrain.loading import loaded
from twintrain.stacks import HELP, chosen
from twintrain.verbs import STACKS


def main(argv: Sequence[str] | None = None, program: str = "twintrain train") -> int:
    """Train, or go on with `--resume RUN`; the exit code."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        print_help(program, "Train a GPT.", [(f"--stack {'|'.join(STACKS)}", HELP)])
        return 0
    stack, words = chosen(typed)
    as_typed = program if stack == STACKS[0] else f"{program} --stack {stack}"
    return int(loaded(f"{stack}train.run").main(words, as_typed))

"""`twintrain evaluate`: how good a run is, in the stack that is asked for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from coretrain.inference.evaluate_options import options as common_options
from coretrain.training.help import asks_for_help
from twintrain.loading import loaded
from twintrain.stacks import add_stack, chosen


def options(program: str = "twintrain evaluate") -> argparse.ArgumentParser:
    """The options of both stacks, and which of these it is to be."""
    parser = common_options(program)
    add_stack(parser)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "twintrain evaluate") -> int:
    """Tell a run's figures."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        options(program).print_help()
        return 0
    stack, words = chosen(typed)
    return int(loaded(f"{stack}train.evaluate").main(words, program))

"""`twintrain generate`: text from a run, in the stack that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from coretrain.inference.generate_options import options as common_options
from coretrain.training.help import asks_for_help
from twintrain.loading import loaded
from twintrain.stacks import add_stack, chosen


def main(argv: Sequence[str] | None = None, program: str = "twintrain generate", chat: bool = False) -> int:
    """Print text, or with `chat` answers."""
    typed = sys.argv[1:] if argv is None else argv
    if asks_for_help(typed):
        parser = common_options(program, chat)
        add_stack(parser)
        parser.print_help()
        return 0
    stack, words = chosen(typed)
    return int(loaded(f"{stack}train.generate").main(words, program, chat))

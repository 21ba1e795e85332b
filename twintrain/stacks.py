"""Which of the two stacks is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from coretrain.base.errors import Options
from twintrain.verbs import STACKS

HELP = "what carries it out: torch (the default) or jax"


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option `--stack`."""
    parser.add_argument("--stack", choices=STACKS, default=STACKS[0], help=HELP)


def chosen(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The stack that `--stack` names, and the other words as they are. Raises `UserError` where it is no stack."""
    parser = Options(add_help=False, allow_abbrev=False)
    add_stack(parser)
    given, rest = parser.parse_known_args(argv)
    return given.stack, rest


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether help is wanted, for which no stack is needed."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return any(word in ("-h", "--help") for word in own)

"""Which of the two stacks is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from coretrain.base.errors import Options
from twintrain.verbs import STACKS

HELP = "the stack that does it: torch (the default) or jax"


def add_stack(parser: argparse.ArgumentParser) -> None:
    """Give a parser the option `--stack`."""
    parser.add_argument("--stack", choices=STACKS, default=STACKS[0], help=HELP)


def chosen(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The stack that `--stack` names, and the other words as they are. Raises `UserError` where it is no stack."""
    parser = Options(add_help=False, allow_abbrev=False)
    add_stack(parser)
    given, rest = parser.parse_known_args(argv)
    return given.stack, rest

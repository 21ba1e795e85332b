"""Numbers that come in as text: options of command lines, and what launchers tell in the environment."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

COUNTABLE = 2**53
"""No count goes beyond: up to here, floats and JSON hold whole numbers exactly."""


def whole_number(least: int = 0, most: int = COUNTABLE) -> Callable[[str], int]:
    """A `type` of argparse: a whole number from `least` to `most`, written in ASCII's digits."""

    def number(text: str) -> int:
        value = _whole(text)
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number from {least} to {most}")
        return value

    return number


def real_number(least: float = 0.0, most: float = math.inf) -> Callable[[str], float]:
    """A `type` of argparse: a number from `least` to `most` that isn't infinite."""

    def number(text: str) -> float:
        try:
            value = float(text) if text.isascii() else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            upper = "" if most == math.inf else f" to {most:g}"
            raise argparse.ArgumentTypeError(f"{shown(text)} is no number from {least:g}{upper or ' up'}")
        return value

    return number


def told_number(name: str, otherwise: int | None = None, most: int = 2**31 - 1) -> int:
    """A count, a rank or a port that the environment variable `name` holds; `otherwise` where it isn't set.

    Raises `UserError` where it is no whole number from 0 to `most`, or must be set and isn't.
    """
    text = os.environ.get(name)
    if text is None and otherwise is not None:
        return otherwise
    value = None if text is None else _whole(text)
    if value is None or not 0 <= value <= most:
        found = "is not set" if text is None else f"is {shown(text)}"
        raise UserError(
            "base/environment-number-wrong",
            f"the environment variable {name} {found}, where a launcher writes a whole number from 0 to {most}: start "
            "the run with torchrun, deepspeed or --spawn, or unset RANK for a run of one process",
        )
    return value


def _whole(text: str) -> int | None:
    try:
        return int(text) if text.isascii() else None  # int would read the digits of every script
    except ValueError:
        return None

"""What `align.reward` says: a sum of rewards with weights, as `0.2*format?pattern=[0-9]+ + 0.8*exact`."""

from __future__ import annotations

import math
import re

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

PLUS = re.compile(r"\s\+\s")
WEIGHT = re.compile(r"([^*?:/]*)\*(.*)", re.DOTALL)


def terms_of(word: str) -> list[tuple[float, str]]:
    """The weight and the name of each reward in a sum. Raises `UserError` where one is missing or no number."""
    found = []
    for text in PLUS.split(f" {word} "):
        match = WEIGHT.fullmatch(text.strip())
        name = (match[2] if match else text).strip()
        if not name:
            raise UserError(
                "alignment/reward-term-empty",
                f"align.reward = {shown(word)}: a reward is missing: write NAME, or 0.5*NAME + 0.5*NAME, with blanks "
                "around +",
            )
        found.append((_weight(match[1], word) if match else 1.0, name))
    return found


def _weight(text: str, word: str) -> float:
    try:
        weight = float(text) if text.isascii() else math.nan
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight) or weight == 0:
        raise UserError(
            "alignment/reward-weight-wrong",
            f"align.reward = {shown(word)}: {shown(text.strip()) or 'nothing'} is no weight: write a number other than "
            "0 before *",
        )
    return weight

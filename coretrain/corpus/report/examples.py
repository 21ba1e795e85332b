"""Documents beside each limit: those that a rule drops, and those that pass it, nearest to the limit first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.corpus.pipeline.made import texts_of
from coretrain.corpus.recipe import Recipe
from coretrain.corpus.store import read_rows

SHOWN = 420
"""Characters of a text."""
Place = tuple[int, int]
"""Piece and row."""


@dataclass(frozen=True)
class Example:
    """One document."""

    value: float
    name: str
    """Its address, or id."""
    text: str
    """The beginning."""
    more: int
    """Characters behind it."""


def examples(work: Path, recipe: Recipe, told: Mapping[str, Any]) -> dict[str, dict[str, list[Example]]]:
    """By rule: `dropped` and `kept`."""
    chosen: dict[str, dict[str, list[tuple[float, Place]]]] = {}
    for rule in recipe.every_rule():
        limit = (rule.least if rule.least is not None else rule.most) or 0.0
        chosen[rule.name] = {}
        for side in ("dropped", "kept"):
            found = [
                (abs(value - limit), (piece, int(row)), value)
                for piece, facts in enumerate(told["select"])
                for row, value in facts["examples"].get(rule.name, {}).get(side, ())
            ]
            chosen[rule.name][side] = [(value, place) for _, place, value in sorted(found)[: recipe.output.examples]]
    texts = _texts(work, {place for sides in chosen.values() for side in sides.values() for _, place in side})
    return {
        name: {side: [Example(value, *texts[place]) for value, place in found] for side, found in sides.items()}
        for name, sides in chosen.items()
    }


def _texts(work: Path, places: Sequence[Place] | set[Place]) -> dict[Place, tuple[str, str, int]]:
    """Name, beginning and rest of the documents at some places."""
    by_piece: dict[int, list[int]] = defaultdict(list)
    for piece, row in sorted(places):
        by_piece[piece].append(row)
    found: dict[Place, tuple[str, str, int]] = {}
    for piece, rows in by_piece.items():
        read = read_rows(work / texts_of(piece), ("id", "url", "text"), np.array(rows, np.int64))
        for row, one in zip(rows, read, strict=True):
            text = one["text"]
            found[piece, row] = one["url"] or one["id"], text[:SHOWN], max(0, len(text) - SHOWN)
    return found

"""What became of one document: found by its id or address, with the numbers that its rules look at."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of
from coretrain.base.parse import shown
from coretrain.corpus.pipeline.alike import reasons_in
from coretrain.corpus.pipeline.made import signals_of, texts_of, troubles_of
from coretrain.corpus.pipeline.select import LATER, reasons
from coretrain.corpus.recipe import Recipe
from coretrain.corpus.rules import Rule
from coretrain.corpus.store import read_columns, read_rows

SOURCE_ID = "source_id"
"""Metadata: the id that a document has in the data set that it is read from."""


def why(work: Path, recipe: Recipe, told: Mapping[str, Any], sought: str) -> str:
    """A few lines about every document with this id or address. Raises `UserError` where there is none."""
    for name, digest in told.get("hashes", {}).items():
        path = work / name
        if not path.is_file() or sha256_of(path) != digest:
            raise UserError(
                "corpus/why-overwritten",
                f"{path} is of another attempt, that came to no end, than the corpus here: run twintrain corpus retune "
                "once more, with limits that keep something",
            )
    found: list[str] = []
    for piece in range(len(told["pieces"])):
        for row, who in enumerate(read_rows(work / texts_of(piece), ("id", "url", "metadata"))):
            if sought in (who["id"], who["url"]) or _is_own_id(sought, who["metadata"]):
                found.append(_told(work, recipe, told, piece, row, who))
    found += list(_troubles(work, len(told["pieces"]), sought))
    if not found:
        raise UserError(
            "corpus/document-unknown", f"no document has the id or address {shown(sought)}: give one as it was crawled"
        )
    return "\n\n".join(found)


def _is_own_id(sought: str, metadata: str | None) -> bool:
    """Whether the data set itself calls a document so."""
    return bool(sought and metadata and SOURCE_ID in metadata and json.loads(metadata).get(SOURCE_ID) == sought)


def _told(work: Path, recipe: Recipe, told: Mapping[str, Any], piece: int, row: int, who: Mapping[str, Any]) -> str:
    number = int(reasons_in(work / told["decided"][piece])[row])
    columns = read_columns(work / signals_of(piece))
    values = {name: float(column[row]) for name, column in columns.items() if isinstance(column, np.ndarray)}
    rules = recipe.every_rule()
    head = f"{who['id']}" + (f"  {who['url']}" if who["url"] else "")
    if number < 0:
        lines = ["kept"]
    elif number < len(rules):
        lines = [f"dropped by {rules[number].name}: {held_against(rules[number], values)}"]
    elif reasons(recipe)[number] == LATER[0]:
        lines = ["dropped: an earlier limit of a gate stopped it, and its later signals weren't computed"]
    else:
        lines = [f"dropped: {_copy(work, told, piece, row) or reasons(recipe)[number]}"]
    lines += [
        f"also breaks {rule.name}: {held_against(rule, values)}"
        for at, rule in enumerate(rules)
        if at != number and not rule.keeps({name: np.array([value]) for name, value in values.items()})[0]
    ]
    numbers = ", ".join(f"{name} {values[name]:.4g}" for name in sorted({rule.signal for rule in rules}))
    return "\n".join([head, *(f"  {line}" for line in lines), f"  signals: {numbers}"])


def held_against(rule: Rule, values: Mapping[str, float]) -> str:
    """The number, and the limit in words."""
    return f"{rule.signal} is {values[rule.signal]:.6g} ({rule.meaning})"


def _copy(work: Path, told: Mapping[str, Any], piece: int, row: int) -> str:
    for path in told["copies"][piece]:
        found = read_columns(work / path)
        for at in np.flatnonzero(found["row"] == row).tolist():
            return f"it says the same as {found['of'][at]}, which goes on in its place"
    return ""


def _troubles(work: Path, pieces: int, sought: str) -> Iterator[str]:
    """What was passed over, and names it."""
    for piece in range(pieces):
        for line in (work / troubles_of(piece)).read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            if sought and sought in one["words"]:
                yield f"{sought}\n  not read: {one['kind']} at {one['file']}, {one['offset']}: {one['words']}"

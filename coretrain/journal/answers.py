"""answers.jsonl: some sampled answers of each evaluation, so that one can read what a reward made of a policy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from coretrain.base.files import write_atomically
from coretrain.base.parse import from_json, read_bytes

ANSWERS = "answers.jsonl"
SHOWN = 8
"""Answers of an evaluation that are kept."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)
    update: int
    prompt: str
    answer: str
    reward: float | None
    ended: bool


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's answers.jsonl, in order; lines that are no whole row are passed over."""
    try:
        text = read_bytes(folder / ANSWERS).decode(errors="replace")
    except OSError:
        return []
    rows = []
    for line in text.split("\n"):
        try:
            rows.append(_Answer.model_validate(from_json(line)).model_dump())
        except (ValueError, TypeError):
            continue
    return rows


def keep_answers(folder: Path, update: int, answers: Sequence[Mapping[str, Any]]) -> None:
    """Keep the answers sampled after `update` updates, in place of those that were sampled there or later."""
    before = [row for row in read_answers(folder) if row["update"] < update]
    rows = [*before, *({"update": update, **answer} for answer in answers[:SHOWN])]
    write_atomically(folder / ANSWERS, "".join(json.dumps(row) + "\n" for row in rows).encode())

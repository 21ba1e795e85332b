"""What must happen to each page that was planted: the answers beside the demo's files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, write_atomically

NAME, WAY_OUT = "answers.json", "make the demo again"
OUTCOMES = {
    "kept": "it comes through",
    "dropped": "a rule of quality drops it",
    "duplicate": "of its group one is kept",
    "either": "its likeness to another of its group is near the usual threshold",
    "distinct": "it is too little like the other of its group: both are kept",
    "language": "it isn't English",
    "replaced": "it comes through, without the personal data in it",
    "trouble": "it can't be read, or isn't a page: counted by the kind that `facts` name",
}


@dataclass(frozen=True)
class Plant:
    """A page whose fate is known."""

    id: str
    """Of its document, read from the WARC file."""
    url: str
    kind: str
    """What was planted: `near-duplicate`, `lorem-ipsum`, ..."""
    outcome: str
    """One of `OUTCOMES`."""
    group: str = ""
    """Pages that are like each other share it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`jaccard` (of word 5-grams, with the first of the group), `language`, `trouble`, `contains`, `emails`, ..."""


@dataclass(frozen=True)
class DemoAnswers:
    """The files, by their names in the folder, and what is in them."""

    warc: tuple[str, ...]
    wet: tuple[str, ...]
    wat: tuple[str, ...]
    index: str
    pages: int
    """Answers of servers in the WARC files: pages, and what isn't one."""
    plants: tuple[Plant, ...]

    def of(self, kind: str) -> list[Plant]:
        """The plants of one kind."""
        return [one for one in self.plants if one.kind == kind]

    def with_outcome(self, outcome: str) -> list[Plant]:
        """The plants that must end alike."""
        return [one for one in self.plants if one.outcome == outcome]


def save(folder: Path, answers: DemoAnswers) -> None:
    """Write them into `folder`."""
    write_atomically(folder / NAME, json.dumps(asdict(answers), ensure_ascii=False, indent=1) + "\n")


def load(folder: Path) -> DemoAnswers:
    """Read them again. Raises `UserError` where they are missing or damaged."""
    path = folder / NAME
    said = read_json(path, "what the demo's pages must come to", WAY_OUT)
    try:
        return DemoAnswers(
            warc=tuple(said["warc"]),
            wet=tuple(said["wet"]),
            wat=tuple(said["wat"]),
            index=said["index"],
            pages=said["pages"],
            plants=tuple(Plant(**one) for one in said["plants"]),
        )
    except (KeyError, TypeError):
        raise UserError("corpus/answers-damaged", f"{path} is damaged: {WAY_OUT}") from None

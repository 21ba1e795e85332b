"""What is known of single places: `known.toml`, argued one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from coretrain.base.parse import from_toml
from parity.mutation.places import Place

FILE = Path(__file__).with_name("known.toml")
Status = Literal["equivalent", "elsewhere", "survivor"]


class _Entry(BaseModel):
    """An entry: of these edits, or of all in a function or a file, why they are as they are."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    file: str
    reason: str
    function: str | None = None
    line: str | None = None
    """The line of code, without blanks around it."""
    operator: str | None = None
    about: str | None = None

    def holds(self, place: Place) -> bool:
        inside = self.function is None or f"{place.function}.".startswith(f"{self.function}.")
        return (
            place.file == self.file
            and inside
            and self.line in (None, place.code)
            and self.operator in (None, place.operator)
            and self.about in (None, place.about)
        )


class _Known(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    equivalent: list[_Entry] = []
    """Edits that change nothing that anybody could see."""
    elsewhere: list[_Entry] = []
    """What runs on another machine alone: no test here can see it."""
    survivor: list[_Entry] = []
    """Edits that no test sees, though one might."""


@dataclass(frozen=True)
class Known:
    """All of it."""

    entries: Sequence[tuple[Status, _Entry]]

    def of(self, place: Place) -> tuple[Status, str] | None:
        """What is known of a place, and why."""
        return next(((status, entry.reason) for status, entry in self.entries if entry.holds(place)), None)


def load(path: Path = FILE) -> Known:
    """The file, checked: each entry is as exact as its kind asks for."""
    known = _Known.model_validate(from_toml(path.read_text(encoding="utf-8")))
    for entry in (*known.equivalent, *known.survivor):
        if entry.line is None:
            raise ValueError(f"{path.name}: an entry for {entry.file} has no line: each place is argued by itself")
    entries: list[tuple[Status, _Entry]] = [("equivalent", one) for one in known.equivalent]
    entries += [("elsewhere", one) for one in known.elsewhere]
    return Known([*entries, *(("survivor", one) for one in known.survivor)])

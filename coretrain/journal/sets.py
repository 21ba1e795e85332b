"""Named validation sets in a run's figures: each one's bits per byte before and after, gained and forgotten."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coretrain.journal.chart import Line, chart
from coretrain.journal.metrics import number

BITS, LOSS = "bits_per_byte/", "val_loss/"
"""What an evaluation's row calls a set's figures: these, with its name behind them."""
TITLE = "Validation sets, bits per byte"
LOOKS = 6
"""Colours of page.css for the sets' lines; more sets begin again with the first."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A set's bits per byte, before the first update and now; `before` is None where that wasn't evaluated."""

    name: str
    before: float | None
    after: float | None

    @property
    def gain(self) -> float | None:
        """Bits per byte that were gained: before - after, negative where they were lost."""
        if self.before is None or self.after is None:
            return None
        return self.before - self.after

    @property
    def forgetting(self) -> float | None:
        """Bits per byte that were lost: after - before where that is positive, else 0."""
        return None if self.gain is None else max(0.0, -self.gain)

    def words(self) -> str:
        """A row of the table."""
        if self.gain is None or self.forgetting is None:
            return number(self.after)
        return f"{number(self.before)} -> {number(self.after)}  gain {self.gain:+.4f}  forgotten {self.forgetting:.4f}"


def names_of(row: Row) -> list[str]:
    """The sets that an evaluation's row has."""
    return [key.removeprefix(BITS) for key in row if key.startswith(BITS)]


def first_of(evaluations: Sequence[Row], updates: Sequence[Row]) -> Row:
    """The evaluation that was made before any update; {} where none was."""
    begun = min((row["update"] for row in updates), default=0)
    return next((row for row in evaluations[:1] if row["update"] <= begun), {})


def changes(first: Row, last: Row) -> list[Change]:
    """Each set of the last evaluation, against the first."""
    return [Change(name, first.get(BITS + name), last.get(BITS + name)) for name in names_of(last)]


def evaluated_lines(first: Row, row: Row) -> list[str]:
    """A line of the terminal for each set of an evaluation, at most 80 columns wide."""
    lines, wide = [], max(map(len, names_of(row)), default=0)
    for one in changes(first, row):
        since = "" if one.gain is None or row is first else f" ({0.0 - one.gain:+.4f})"
        nats = number(row.get(LOSS + one.name))
        lines.append(f"  {one.name:<{wide}}  {number(one.after)} bits per byte{since}, {nats} nats a token")
    return lines


def table(first: Row, last: Row) -> list[tuple[str, str]]:
    """Rows of the table at a run's end: a set, and what became of it in bits per byte."""
    return [(one.name, one.words()) for one in changes(first, last)]


def drawn(evaluations: Sequence[Row]) -> list[str]:
    """The chart of the page; none before the second evaluation."""
    rows = [row for row in evaluations if names_of(row)]
    if len(rows) < 2:
        return []
    names = list(dict.fromkeys(name for row in rows for name in names_of(row)))
    lines = [
        Line(name, [_finite(row.get(BITS + name)) for row in rows], f"set{index % LOOKS}")
        for index, name in enumerate(names)
    ]
    return [chart("Validation sets", "bits per byte", [row["update"] for row in rows], lines, wide=True)]


def section(evaluations: Sequence[Row], updates: Sequence[Row]) -> str:
    """The table of the page, as HTML; '' where no set was evaluated."""
    found = changes(first_of(evaluations, updates), evaluations[-1]) if evaluations else []
    if not found:
        return ""
    head = ("set", "before", "after", "gain", "forgetting")
    lines = ["<tr>" + "".join(f"<th>{word}</th>" for word in head) + "</tr>"]
    for one in found:
        gain = "" if one.gain is None else f"{one.gain:+.4f}"
        lost = "" if one.forgetting is None else f"{one.forgetting:.4f}"
        before = "" if one.before is None else number(one.before)
        cells = (html.escape(one.name), before, number(one.after), gain, lost)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<section><h2>{TITLE}</h2><table class="sets">{"".join(lines)}</table></section>'


def _finite(value: float | None) -> float:
    return math.nan if value is None else float(value)

"""The score: how many of the mutants that are none of the known equivalents were killed, and within which interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from parity.mutation.judging import Verdict
from parity.mutation.sample import CORE_FILES, STACKS

APART = ("stillborn", "equivalent", "elsewhere", "unrecorded")
"""What counts in no score."""
SURE = 1.959963984540054
"""Standard deviations of an interval that holds 95%."""
GROUPS: Mapping[str, Callable[[Verdict], bool]] = {
    "stacks": lambda one: one.file.startswith(STACKS),
    "contract": lambda one: not one.file.startswith(STACKS),
    "attention, loss, optimizer, schedule, data order": lambda one: one.file in CORE_FILES,
    "all": lambda one: True,
}


def interval(killed: int, judged: int) -> tuple[float, float]:
    """Wilson's interval of 95% for a share (Wilson 1927): sound for shares near 1 too."""
    if not judged:
        return 0.0, 1.0
    share, square = killed / judged, SURE**2
    middle = (share + square / (2 * judged)) / (1 + square / judged)
    half = SURE / (1 + square / judged) * math.sqrt(share * (1 - share) / judged + square / (4 * judged**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def counted(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Numbers of a group of mutants: judged, killed, by whom, and those that don't count."""
    rows = list(verdicts)
    killed = [one for one in rows if one.status == "killed"]
    judged = len(killed) + sum(one.status == "survived" for one in rows)
    low, high = interval(len(killed), judged)
    by_parity = sum((one.killed_by or "").startswith("parity/") for one in killed)
    apart = {status: sum(one.status == status for one in rows) for status in APART}
    unseen = sum(one.status == "survived" and not one.tests for one in rows)
    numbers = {"judged": judged, "killed": len(killed), "by_parity": by_parity, "unseen": unseen}
    return numbers | {"low": round(low, 4), "high": round(high, 4)} | apart


def groups(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The headline scores."""
    found = [{"name": name} | counted(one for one in verdicts if holds(one)) for name, holds in GROUPS.items()]
    return [row for row in found if row["judged"]]


def by_room_and_operator(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A row for each room and operator that has a mutant."""
    pairs = sorted({(one.room, one.operator) for one in verdicts})
    return [
        {"room": room, "operator": operator}
        | counted(one for one in verdicts if (one.room, one.operator) == (room, operator))
        for room, operator in pairs
    ]


def tables(verdicts: Sequence[Verdict]) -> list[Table]:
    """The score for a terminal: groups, rooms, operators."""
    made = [_table("score", [(row["name"], row) for row in groups(verdicts)])]
    for title, name in (("by room", "room"), ("by operator", "operator")):
        values = sorted({getattr(one, name) for one in verdicts})
        rows = [(value, counted(one for one in verdicts if getattr(one, name) == value)) for value in values]
        made.append(_table(title, rows))
    return made


def _table(title: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("judged", "killed", "score", "95%", "by parity", "unseen", "apart"):
        table.add_column(name, justify="right")
    for name, row in rows:
        share = f"{row['killed'] / row['judged']:.1%}" if row["judged"] else ""
        ends = f"{row['low']:.0%}-{row['high']:.0%}" if row["judged"] else ""
        apart = sum(row[key] for key in APART)
        rest = (str(number) for number in (row["by_parity"], row["unseen"], apart))
        table.add_row(name, str(row["judged"]), str(row["killed"]), share, ends, *rest)
    return table

"""metrics.jsonl, read and rewound; and how its numbers are written."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically

METRICS, SAMPLE = "metrics.jsonl", "sample.txt"
Rows = Sequence[tuple[str, str]]


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Updates, evaluations and events of a run, in order. A torn last line, as a kill leaves it, is passed over.

    Raises `UserError` on a damaged line before the last: a run with a hole in it isn't to be compared with anything.
    """
    rows = [row for _, row in _lines(folder / METRICS)]
    return (
        [row for row in rows if "loss" in row],
        [row for row in rows if "val_loss" in row],
        [row for row in rows if "event" in row],
    )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield line, row
        elif index + 1 < len(lines):
            raise UserError(
                "journal/line-damaged",
                f"{path}, line {index + 1}, is damaged: delete that line to go on without it",
            )


def rewound(folder: Path, start_update: int, redone: Collection[str] = (), keep: Collection[str] = ()) -> Any:
    """metrics.jsonl opened to append, without what was journalled after `start_update` updates were done.

    Events of the kinds `redone` are about an update not yet done, so those at `start_update` go too; those of the kinds
    `keep` all stay.
    """
    path = folder / METRICS

    def stays(row: Mapping[str, Any]) -> bool:
        kind = row.get("event")
        before = "loss" in row or kind in redone
        return kind in keep or bool(row["update"] < start_update if before else row["update"] <= start_update)

    if path.exists():
        write_atomically(path, "".join(line + "\n" for line, row in _lines(path) if stays(row)).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a", encoding="utf-8")


def number(value: float | None) -> str:
    """A loss in four decimals; what isn't finite by its name."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.4f}"


def printable(text: str) -> str:
    """Generated text without the control characters that could upset a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def clock(seconds: float) -> str:
    """Seconds in words: 42s, 3m07s, 2h05m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}m"

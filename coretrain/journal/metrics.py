"""metrics.jsonl, read and rewound; and how its numbers are written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.base.parse import from_json

METRICS, SAMPLE = "metrics.jsonl", "sample.txt"
Rows = Sequence[tuple[str, str]]


class _Row(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False, strict=True)
    update: Annotated[int, Field(ge=0)]


class _Update(_Row):
    loss: float | None
    grad_norm: float | None
    lr: float
    tokens: int
    batch_hash: str
    seconds: float


class _Evaluation(_Row):
    val_loss: float | None
    bits_per_byte: float | None = None


class _Event(_Row):
    event: str
    text: str


KINDS: dict[str, type[_Row]] = {"loss": _Update, "val_loss": _Evaluation, "event": _Event}
"""What a line must hold, by the field that tells its kind; it may hold more."""


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Updates, evaluations and events of a run, in order. A torn last line, as a kill leaves it, is passed over.

    Raises `UserError` on any other damaged line: a run with a hole in it isn't to be compared with anything.
    """
    rows = [row for _, row in _lines(folder / METRICS)]
    return (
        [row for row in rows if "loss" in row],
        [row for row in rows if "val_loss" in row],
        [row for row in rows if "event" in row],
    )


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if row := _row(line):
            yield line, row
        elif index + 1 < len(lines):
            raise UserError(
                "journal/line-damaged",
                f"{path}, line {index + 1}, is damaged: delete that line to go on without it",
            )


def _row(line: str) -> dict[str, Any] | None:
    """What a line says; None where it isn't whole."""
    try:
        row = from_json(line)
        kind = next(KINDS[field] for field in KINDS if field in row)
        kind.model_validate(row)
    except (ValueError, TypeError, StopIteration):  # pydantic's is a ValueError
        return None
    return row if isinstance(row, dict) else None


def gaps(folder: Path, done: int, saved: bool = False) -> str:
    """What the journal of a run lacks of its first `done` updates, in a sentence, or ''. Raises as `read_metrics`.

    With `saved` it was saved after them: that stands behind the last one and its evaluation.
    """
    path, faults = folder / METRICS, []
    updates, _, events = read_metrics(folder) if path.is_file() else ([], [], [])
    counts = Counter(row["update"] for row in updates)
    lacking = sorted(set(range(done)) - counts.keys())
    twice = sorted(update for update, times in counts.items() if times > 1)
    if lacking:
        faults.append(f"lacks {len(lacking)} of {done} updates ({_spans(lacking)})")
    if twice:
        faults.append(f"has {len(twice)} more than once ({_spans(twice)})")
    if saved and not lacking and ("checkpoint", done) not in {(row["event"], row["update"]) for row in events}:
        faults.append(f"ends before the line of the checkpoint after {done} updates")
    beyond = max(counts, default=-1) >= done  # then so is the last line, which a resume writes anew
    if not beyond and path.is_file() and (tail := path.read_bytes().rpartition(b"\n")[2].decode(errors="replace")):
        faults += ["ends in a line that was cut off"] if _row(tail) is None else []
    return f"{path} {', and '.join(faults)}: its curves may not be whole" if faults else ""


def _spans(numbers: Sequence[int], most: int = 4) -> str:
    """Numbers in rising order as 3, 5-9; of many spans the first."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] + 1 == number:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in spans]
    return ", ".join([*words[:most], *(["..."] if len(words) > most else [])])


def rewound(folder: Path, start_update: int, redone: Collection[str] = (), keep: Collection[str] = ()) -> Any:
    """metrics.jsonl opened to append, without what was journalled after `start_update` updates were done.

    An evaluation counts as an event of the kind `evaluation`. Events of the kinds `redone` are about an update not yet
    done, so those at `start_update` go too; those of the kinds `keep` all stay.
    """
    path = folder / METRICS

    def stays(row: Mapping[str, Any]) -> bool:
        kind = row.get("event", "evaluation" if "val_loss" in row else None)
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

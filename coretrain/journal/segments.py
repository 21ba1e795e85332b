"""Which stack made which updates of a run: stacks.json, an entry for each time that it was begun or gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from coretrain.base.files import write_atomically
from coretrain.base.parse import from_json, read_bytes

SEGMENTS = "stacks.json"
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}


@dataclass(frozen=True)
class Segment:
    """Updates from `first` (from 0) to the next segment's or the end."""

    first: int
    stack: str
    device: str
    made_with: Mapping[str, str] = field(default_factory=dict)
    """As `coretrain.base.machine` has it; empty where a run of an earlier version doesn't say."""

    def __str__(self) -> str:
        return f"in {FRAMEWORKS.get(self.stack, self.stack)}" + (f" on {self.device}" if self.device else "")


def read_segments(folder: Path) -> list[Segment]:
    """The segments of a run, in order. None where it has no such file, as an older run, or where that is damaged: a
    report then says less, and nothing else needs it."""
    try:
        rows = from_json(read_bytes(folder / SEGMENTS))
        found = [
            Segment(int(row["first"]), str(row["stack"]), str(row["device"]), dict(row.get("made_with", {})))
            for row in rows
        ]
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return []
    return found if found == sorted(found, key=lambda segment: segment.first) else []


def begin_segment(folder: Path, segment: Segment) -> None:
    """Add a segment to those of the run; what was made from its first update on is made anew."""
    before = [other for other in read_segments(folder) if other.first < segment.first]
    write_atomically(folder / SEGMENTS, json.dumps([asdict(one) for one in [*before, segment]], indent=1).encode())


def trained_where(segments: list[Segment], updates: int) -> str:
    """Where a run of so many updates was trained, in words: one place, or each with its updates."""
    merged: list[Segment] = []
    for segment in segments:
        if segment.first < updates and (not merged or str(merged[-1]) != str(segment)):
            merged.append(segment)
    if not merged:
        return str(segments[-1]) if segments else ""
    if len(merged) == 1 and merged[0].first == 0:
        return str(merged[0])
    ends = [*(segment.first for segment in merged[1:]), updates]
    words = [f"{one} ({_updates(one.first, end)})" for one, end in zip(merged, ends, strict=True)]
    if merged[0].first:
        words.insert(0, f"in a stack that was not recorded ({_updates(0, merged[0].first)})")
    return ", then ".join(words)


def _updates(first: int, end: int) -> str:
    return f"updates {first + 1:,} to {end:,}" if end > first + 1 else f"update {end:,}"

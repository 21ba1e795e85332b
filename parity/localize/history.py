"""What a run's folder says of the run: config, updates, evaluations, decisions, and which stack made what."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.health import HealthMonitor
from coretrain.journal.metrics import gaps, read_metrics
from coretrain.journal.segments import Segment, read_segments
from coretrain.runs.files import with_own_files
from coretrain.runs.folder import change_told, changed_since, open_run

INDEX = re.compile(r"data goes on at index (\d+)$")
DECISIONS = "skip", "rollback", "stop"


@dataclass(frozen=True)
class History:
    """One run, read from its folder, which is only read."""

    folder: Path
    config: RunConfig
    updates: dict[int, dict[str, Any]]
    """By update, as metrics.jsonl has them; after a rollback the later one counts."""
    evaluations: dict[int, float | None]
    """Validation loss in nats a token, by updates done."""
    events: list[dict[str, Any]]
    segments: list[Segment]
    said: list[str]
    """What is to be said of it in a verdict: changed fields, holes in the journal."""

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The config's fields by dotted name, as config.json has them."""
        sections = json.loads(self.config.to_json())
        return {f"{s}.{k}": v for s, fields in sections.items() if isinstance(fields, dict) for k, v in fields.items()}

    @property
    def own(self) -> RunConfig:
        """The config by which its data can be opened: tokenizer and template are the files that the run keeps."""
        return with_own_files(self.config, self.folder)

    @cached_property
    def decisions(self) -> dict[int, str]:
        """What was done about an update that failed, by update: skip, rollback or stop. Of the others nothing."""
        return {event["update"]: event["event"] for event in self.events if event["event"] in DECISIONS}

    def stack(self, update: int) -> str:
        """torch or jax: who made `update`; "" where the folder doesn't say."""
        return next((one.stack for one in reversed(self.segments) if one.first <= update), "")

    def device(self, update: int) -> str:
        """What `update` was made on, as the folder says."""
        return next((one.device for one in reversed(self.segments) if one.first <= update), "")

    def of_one_stack(self, first: int, stop: int) -> int:
        """Where the updates [first, stop) end that the stack of the first one made, however often it was resumed."""
        stack = self.stack(first)
        return next((one.first for one in self.segments if first < one.first < stop and one.stack != stack), stop)

    def data_index(self, update: int) -> int:
        """Its place in the data order: ahead of the update's number after a rollback."""
        index = update
        for event in self.events:
            found = INDEX.search(event["text"]) if event["event"] == "rollback" else None
            if found and event["update"] <= update:
                index = int(found[1]) + update - event["update"]
        return index

    def decisions_that_differ(self) -> list[int]:
        """Updates of which the health policy, shown the journal's own losses and norms, decides otherwise.

        Nothing for a run whose journal has holes, or that rolled back: a rollback undoes lines of the journal.
        """
        if sorted(self.updates) != list(range(len(self.updates))) or "rollback" in self.decisions.values():
            return []
        compute = self.config.precision.compute
        monitor, scaled = HealthMonitor(self.config.health, wide=compute == "float64"), compute == "float16"
        found = []
        for update, row in sorted(self.updates.items()):
            loss, norm = (_number(row[key]) for key in ("loss", "grad_norm"))
            if scaled and not math.isfinite(norm) and math.isfinite(loss):
                continue  # the loss scale's business, which the policy doesn't see
            action = monitor.decide(update, loss, norm).action
            if action != self.decisions.get(update, "apply"):
                found.append(update)
        return found


def read_history(folder: Path) -> History:
    """The run in `folder`. Raises `UserError` where there is none, as `open_run` does, and for a damaged journal."""
    if not (folder / "config.json").is_file():
        raise UserError(
            "parity/not-a-run",
            f"{folder} holds no run (no config.json): give the folders of two runs, or one config",
        )
    config = open_run(folder)
    changed = changed_since(folder, config)
    said = [f"{folder} goes by {change_told(changed)}"] if changed else []
    try:
        updates, evaluations, events = read_metrics(folder)
        rows = {row["update"]: row for row in updates}  # after a rollback the later one counts
        gap = gaps(folder, max(rows, default=-1) + 1)
    except OSError as error:
        raise UserError(
            "parity/run-unreadable",
            f"can't read {error.filename}: {error.strerror}; give the folders of two runs that have begun",
        ) from None
    losses = {row["update"]: row["val_loss"] for row in evaluations}
    return History(folder, config, rows, losses, events, read_segments(folder), said + ([gap] if gap else []))


def relative(a: Any, b: Any) -> float:
    """|a - b| over the larger one; 0 where both are no number (or None), infinite where one is."""
    a, b = _number(a), _number(b)
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    error = abs(a - b) / max(abs(a), abs(b))
    return error if math.isfinite(error) else float("inf")


def absent(row: Mapping[str, Any]) -> bool:
    """Whether an update's loss is no number."""
    return math.isnan(_number(row["loss"]))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)

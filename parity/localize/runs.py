"""Where two runs part, from what they left in their folders: config, data, learning rates, losses, norms, state."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.config.load import config_from_json
from parity.localize.rows import Row, Verdict
from parity.localize.show import Report
from parity.localize.snapshots import (
    START,
    Interval,
    Snapshots,
    allowance,
    bisect,
)
from parity.localize.traps import TRAPS

NORM = 10
"""A norm may differ so many times as much as a loss: it follows the gradients, which have larger errors."""
RATE = 1e-12
SIDES = ("first", "second")
IRRELEVANT = {"data.workers", "data.prepare_processes", "data.cache", "train.log_interval", "train.sample_tokens"}
JOURNALED = ("loss", "grad_norm", "lr", "batch_hash")


def compare_runs(first: Path, second: Path) -> Report:
    """Two runs of any stack: the first update at which they part, what it is that parts, and between which checkpoints.

    Raises `UserError` for a folder that holds no run, and for runs without a common update.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return examine(first, second, Path(scratch))[0]


def examine(first: Path, second: Path, scratch: Path) -> tuple[Report, Interval]:
    """What `compare_runs` gives, and the interval; what had to be translated of the runs lies in `scratch`."""
    folders = first, second
    configs = [_config(folder) for folder in folders]
    journals = ours, theirs = _journal(first), _journal(second)
    common = [update for update in ours if update in theirs]
    if not common:
        raise UserError(
            "parity/no-common-update",
            f"{first} and {second} have no update in common: give two runs that start at the same update",
        )
    origin = next((u for u in common if any(_differ(ours[u], theirs[u], key) for key in MEASURED)), common[0])
    rows = _rows(common, ours, theirs, _precision(configs), origin)
    one, other = (Snapshots(folder, scratch / side) for folder, side in zip(folders, SIDES, strict=True))
    # the state that a loss was computed from is that of the update before it
    interval = bisect(one, other, _precision(configs), common[0], max(common[0], origin - 1))
    verdict = _verdict(common, ours, theirs, configs, rows, interval)
    arrays = {"update": np.array(common)}
    for side, journal in zip(SIDES, journals, strict=True):
        arrays |= {
            f"{side}/{key}": np.array([journal[u][key] for u in common], float) for key in ("loss", "grad_norm", "lr")
        }
    return Report(f"{first.name} and {second.name}", rows + interval.rows, verdict, arrays), interval


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            "parity/not-a-run",
            f"{folder} holds no run (no config.json): give the folders of two runs, or one config",
        )
    try:
        nested = json.loads(config_from_json(path.read_text(encoding="utf-8")).to_json())
    except (ValueError, TypeError, AttributeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            "parity/run-config-invalid",
            f"{path} is no run's config ({reason}): give a whole run, or resume it from a copy",
        ) from None
    return {f"{s}.{k}": v for s, fields in nested.items() if isinstance(fields, dict) for k, v in fields.items()}


def _journal(folder: Path) -> dict[int, dict[str, Any]]:
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't text in UTF-8"
        raise UserError(
            "parity/run-unreadable", f"can't read {path}: {reason}; give the folders of two runs that have begun"
        ) from None
    rows: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut off
        if not isinstance(row, dict):
            raise UserError(
                "parity/journal-line-not-object",
                f"{path} holds a line that is no object ({line[:40]}): it isn't the journal of a run",
            )
        if "loss" in row:
            if missing := [key for key in ("update", *JOURNALED) if key not in row]:
                raise UserError(
                    "parity/journal-update-incomplete",
                    f"{path} has an update without {missing[0]}: it isn't the journal of a run",
                )
            rows[row["update"]] = row  # after a rollback the later one counts
    return rows


def _precision(configs: list[dict[str, Any]]) -> str:
    """The one with the larger allowance; a float32 with reduced-precision matmuls has TF32's ten bits, as float16."""
    fast = ("float16" for c in configs if c["precision.compute"] == "float32" and c["precision.fast_matmul"])
    return max((*(c["precision.compute"] for c in configs), *fast), key=lambda name: START[name])


MEASURED = "loss", "grad_norm"


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    return _relative(a[key], b[key]) != 0


def _rows(common: list[int], ours: Mapping, theirs: Mapping, precision: str, origin: int) -> list[Row]:
    """Batch, rate, loss and norm of every update; rounding may grow from `origin` on, the first that isn't bit-equal.

    A loss that is no number, in both or in one, parts.
    """
    rows = []
    for update in common:
        a, b = ours[update], theirs[update]
        allowed = allowance(max(0, update - origin), precision)
        loss = float("inf") if _nan(a["loss"]) or _nan(b["loss"]) else _relative(a["loss"], b["loss"])
        rows += [
            Row("data", f"batch of update {update}", float(a["batch_hash"] != b["batch_hash"]), None, 0, 0),
            Row("lr", f"learning rate of update {update}", _relative(a["lr"], b["lr"]), None, RATE, 0),
            Row("loss", f"loss of update {update}", loss, None, allowed, allowed / 2),
            Row(
                "norm", f"norm of update {update}", _relative(a["grad_norm"], b["grad_norm"]), None,
                NORM * allowed, NORM * allowed / 2,
            ),
        ]  # fmt: skip
    return rows


def _nan(x: Any) -> bool:
    return x is None or math.isnan(float(x))


def _relative(a: Any, b: Any) -> float:
    a, b = (float("nan") if x is None else float(x) for x in (a, b))
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    error = abs(a - b) / max(abs(a), abs(b))
    return error if math.isfinite(error) else float("inf")


def _verdict(
    common: list[int],
    ours: Mapping,
    theirs: Mapping,
    configs: list[dict[str, Any]],
    rows: list[Row],
    interval: Interval,
) -> Verdict:
    differing = [k for k in sorted(configs[0] | configs[1]) if configs[0].get(k) != configs[1].get(k)]
    differing = [key for key in differing if key not in IRRELEVANT and key.partition(".")[0] in ("model", *SECTIONS)]
    named = ", ".join(f"{key} ({configs[0].get(key)!r}, {configs[1].get(key)!r})" for key in differing[:4])
    fields = f"; the configs differ in {named}" if differing else "; the configs agree"
    where = f"; {interval.sentence}" if interval.rows else ""
    first = next((row for row in rows if row.parts), None)
    if first is None and interval.bad:
        state = next(row for row in interval.rows if row.parts)
        return Verdict(
            "algorithm",
            f"data, learning rates, losses and norms agree within rounding in all {len(common)} updates, and the "
            f"states don't{fields}{where}",
            state.title,
            state.error,
            state.floor,
            traps=TRAPS.get(state.stage, TRAPS["parameter"]),
        )
    if first is None:
        apart = [row for row in rows if row.error > 0]
        if not apart:
            return Verdict("same", f"all {len(common)} updates are equal bit for bit{fields}{where}")
        worst = max((row for row in apart if row.stage == "loss"), key=lambda r: r.error, default=apart[0])
        return Verdict(
            "rounding or kernel",
            f"data and learning rates are equal in all {len(common)} updates; {apart[0].title} is the first figure "
            f"that isn't ({apart[0].error:.1e}), and the difference never grows faster than rounding does (at most "
            f"{worst.error:.1e}, {worst.title}){fields}{where}",
            apart[0].title,
            apart[0].error,
            traps="nothing, where the runs are of two frameworks or devices: compare them in float64 to be sure",
        )
    update = int(first.name.rsplit(" ", 1)[1])
    begun = f"up to update {update - 1} they agree within rounding" if update > common[0] else "it is the first update"
    kind, why, traps = "algorithm", "", ""
    if first.stage == "data":
        kind, why = "data", "the token ids of the batch differ"
        traps = "another seed, another shuffle, rows permuted, a resume that replays or skips data, another tokenizer"
    elif first.stage == "lr":
        kind, traps = "schedule", TRAPS["learning rate"]
        why = f"{ours[update]['lr']!r} against {theirs[update]['lr']!r}"
    elif first.stage == "loss" and _nan(ours[update]["loss"]) and _nan(theirs[update]["loss"]):
        why = "it is no number in either run, and nothing after it proves anything"
        traps = "a rate that is too high, an overflow of float16, a division by no targets"
    elif any(key.startswith("precision.") for key in differing):
        kind = "dtype policy"
        why, traps = (
            f"off by {first.error:.1e} where rounding may make {first.cap:.1e}",
            "a dtype of the config, fast_matmul",
        )
    elif first.stage == "loss" and update == common[0]:
        why = f"off by {first.error:.1e} with nothing trained yet: initial weights, forward pass or loss"
        traps = "other initial weights, then what `python -m parity.localize CONFIG` names"
    elif first.stage == "loss":
        why = (
            f"off by {first.error:.1e} where rounding may have grown to {first.cap:.1e}, the losses before it agree: "
            f"the update after {update - 1} or one before it (gradients, clip, moments, step)"
        )
        traps = TRAPS["parameter"]
    else:
        why = f"off by {first.error:.1e} (rounding: {first.cap:.1e}) while the loss agrees: the backward pass"
        traps = TRAPS["gradient norm"]
    return Verdict(
        kind, f"{first.title} parts: {why}; {begun}{fields}{where}", first.title, first.error, first.floor, traps=traps
    )


SECTIONS = ("data", "train", "optimizer", "schedule", "precision", "execution", "health")

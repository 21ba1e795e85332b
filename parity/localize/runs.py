"""Where two runs part, from what they left in their folders: config, data, learning rates, losses, norms, state."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from parity.localize.history import History, absent, read_history, relative
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
IRRELEVANT = {
    *("data.workers", "data.prepare_processes", "data.cache", "train.log_interval", "train.sample_tokens"),
    *("train.sample_prompt", "train.eval_interval", "train.eval_batches"),
}


def compare_runs(first: Path, second: Path) -> Report:
    """Two runs of any stack: the first update at which they part, what parts, and between which checkpoints.

    What only figures say is called unconfirmed: a spike can take two correct runs as far apart. Raises `UserError` for
    a folder that holds no run, and for runs without a common update.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return examine(first, second, Path(scratch)).report


@dataclass(frozen=True)
class Examined:
    """What the folders of two runs say."""

    report: Report
    interval: Interval
    histories: tuple[History, History]
    snapshots: tuple[Snapshots, Snapshots]
    origin: int
    """The first update whose loss or norm isn't equal bit for bit; where all are, the first of both."""
    parting: int | None
    """The first update that parts by more than rounding usually makes."""
    differing: list[str]
    """Fields in which the configs differ, and that make another training."""


def examine(first: Path, second: Path, scratch: Path) -> Examined:
    """What `compare_runs` gives, and what it is made of; what had to be translated of the runs lies in `scratch`."""
    folders = first, second
    histories = read_history(first), read_history(second)
    ours, theirs = (history.updates for history in histories)
    common = [update for update in ours if update in theirs]
    if not common:
        raise UserError(
            "parity/no-common-update",
            f"{first} and {second} have no update in common: give two runs that start at the same update",
        )
    configs = [history.fields for history in histories]
    origin = next((u for u in common if any(_differ(ours[u], theirs[u], key) for key in MEASURED)), common[0])
    precision = _precision(configs)
    rows = _rows(common, ours, theirs, precision, origin) + _evaluations(histories, precision, origin)
    one, other = (Snapshots(folder, scratch / side) for folder, side in zip(folders, SIDES, strict=True))
    # the state that a loss was computed from is that of the update before it
    interval = bisect(one, other, precision, common[0], max(common[0], origin - 1))
    verdict = _verdict(common, histories, rows, interval)
    said = [text for texts in (*(history.said for history in histories), interval.left_out) for text in texts]
    verdict = replace(verdict, sentence="; ".join([verdict.sentence, *said]))
    arrays = {"update": np.array(common)}
    for side, journal in zip(SIDES, (ours, theirs), strict=True):
        arrays |= {
            f"{side}/{key}": np.array([journal[u][key] for u in common], float) for key in ("loss", "grad_norm", "lr")
        }
    report = Report(f"{first.name} and {second.name}", rows + interval.rows, verdict, arrays)
    parting = next((_update_of(row) for row in rows if row.parts), None)
    return Examined(
        report, interval, histories, (one, other), origin, parting, _differing(configs, ("model", *ARITHMETIC))
    )


def _update_of(row: Row) -> int:
    """Of a row of an update or an evaluation: the update that it is of, or follows."""
    number = int(row.name.rsplit(" ", 1)[1])
    return number - 1 if row.stage == "evaluation" else number


def _differing(configs: Sequence[dict[str, Any]], sections: Collection[str]) -> list[str]:
    differing = [key for key in sorted(configs[0] | configs[1]) if configs[0].get(key) != configs[1].get(key)]
    return [key for key in differing if key not in IRRELEVANT and key.partition(".")[0] in sections]


def _precision(configs: Sequence[dict[str, Any]]) -> str:
    """The one with the larger allowance; a float32 with reduced-precision matmuls has TF32's ten bits, as float16."""
    fast = ("float16" for c in configs if c["precision.compute"] == "float32" and c["precision.fast_matmul"])
    return max((*(c["precision.compute"] for c in configs), *fast), key=lambda name: START[name])


MEASURED = "loss", "grad_norm"


def _differ(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    return relative(a[key], b[key]) != 0


def _rows(common: list[int], ours: Mapping, theirs: Mapping, precision: str, origin: int) -> list[Row]:
    """Batch, rate, loss and norm of every update; rounding may grow from `origin` on, the first that isn't bit-equal.

    A loss that is no number, in both or in one, parts.
    """
    rows = []
    for update in common:
        a, b = ours[update], theirs[update]
        allowed = allowance(max(0, update - origin), precision)
        loss = float("inf") if absent(a) or absent(b) else relative(a["loss"], b["loss"])
        rows += [
            Row("data", f"batch of update {update}", float(a["batch_hash"] != b["batch_hash"]), None, 0, 0),
            Row("lr", f"learning rate of update {update}", relative(a["lr"], b["lr"]), None, RATE, 0),
            Row("loss", f"loss of update {update}", loss, None, allowed, allowed / 2),
            Row(
                "norm", f"norm of update {update}", relative(a["grad_norm"], b["grad_norm"]), None,
                NORM * allowed, NORM * allowed / 2,
            ),
        ]  # fmt: skip
    return rows


def _evaluations(histories: Sequence[History], precision: str, origin: int) -> list[Row]:
    """Validation losses after as many updates, which may differ as a loss may."""
    ours, theirs = (history.evaluations for history in histories)
    rows = []
    for done in sorted(ours.keys() & theirs.keys()):
        allowed = allowance(max(0, done - origin), precision)
        error = relative(ours[done], theirs[done])
        rows.append(Row("evaluation", f"validation loss after update {done}", error, None, allowed, allowed / 2))
    return rows


def _verdict(common: list[int], histories: tuple[History, History], rows: list[Row], interval: Interval) -> Verdict:
    """What the figures say. Data, rates and decisions are exact; the rest is yet to be confirmed by a replay."""
    configs = [history.fields for history in histories]
    differing = _differing(configs, ("model", *SECTIONS))
    named = ", ".join(f"{key} ({configs[0].get(key)!r}, {configs[1].get(key)!r})" for key in differing[:4])
    fields = f"; the configs differ in {named}" if differing else "; the configs agree"
    where = f"; {interval.sentence}" if interval.rows else ""
    exact = next((row for row in rows if row.parts and row.stage in ("data", "lr")), None)
    first = exact or next((row for row in rows if row.parts), None)
    if decision := _decisions(histories, _update_of(first) if first else math.inf):
        return replace(decision, sentence=f"{decision.sentence}{fields}{where}")
    if first is None and interval.bad:
        state = next(row for row in interval.rows if row.parts)
        return Verdict(
            UNCONFIRMED,
            f"data, learning rates, losses and norms agree within rounding in all {len(common)} updates, and the "
            f"states don't{fields}{where}",
            state.title, state.error, state.floor, traps=TRAPS.get(state.stage, TRAPS["parameter"]),
        )  # fmt: skip
    if first is None:
        apart = [row for row in rows if row.error > 0]
        states = [row for row in interval.rows if row.error > 0]
        if not apart and not states:
            return Verdict("same", f"all {len(common)} updates are equal bit for bit{fields}{where}")
        if not apart:
            return Verdict(
                ROUNDING,
                f"all {len(common)} updates are equal bit for bit, and the states aren't: {states[0].title} differs by "
                f"{states[0].error:.1e}{fields}{where}",
                states[0].title,
                states[0].error,
            )
        worst = max((row for row in apart if row.stage == "loss"), key=lambda r: r.error, default=apart[0])
        return Verdict(
            ROUNDING,
            f"data and learning rates are equal in all {len(common)} updates; {apart[0].title} is the first figure "
            f"that isn't ({apart[0].error:.1e}), and the difference never grows faster than rounding does (at most "
            f"{worst.error:.1e}, {worst.title}){fields}{where}",
            apart[0].title, apart[0].error, traps="nothing, where the runs are of two frameworks or devices",
        )  # fmt: skip
    kind, why, traps = _why(first, common, histories, differing)
    update = _update_of(first)
    begun = f"up to update {update - 1} they agree within rounding" if update > common[0] else "it is the first update"
    return Verdict(
        kind, f"{first.title} parts: {why}; {begun}{fields}{where}", first.title, first.error, first.floor, traps=traps
    )


def _why(
    first: Row, common: list[int], histories: tuple[History, History], differing: Sequence[str]
) -> tuple[str, str, str]:
    """(kind, reason, usual reasons) of the first row that parts."""
    update = _update_of(first)
    ours, theirs = (history.updates[update] for history in histories)
    if first.stage == "data":
        traps = "another seed, another shuffle, rows permuted, a resume that replays or skips data, another tokenizer"
        return "data", "the token ids of the batch differ", traps
    if first.stage == "lr":
        return "schedule", f"{ours['lr']!r} against {theirs['lr']!r}", TRAPS["learning rate"]
    if first.stage == "loss" and absent(ours) and absent(theirs):
        traps = "a rate that is too high, an overflow of float16, a division by no targets"
        return UNCONFIRMED, "it is no number in either run, and nothing after it proves anything", traps
    if any(key.startswith("precision.") for key in differing):
        why = f"off by {first.error:.1e} where rounding may make {first.cap:.1e}"
        return "dtype policy", why, "a dtype of the config, fast_matmul"
    if first.stage == "evaluation":
        why = f"off by {first.error:.1e} (rounding: {first.cap:.1e})"
        return UNCONFIRMED, why, "dropout that is on in evaluation, another mean over batches, other validation rows"
    if first.stage == "loss" and update == common[0]:
        return (
            UNCONFIRMED,
            f"off by {first.error:.1e} with nothing trained yet: initial weights, forward pass or loss",
            "other initial weights, then what `python -m parity.localize CONFIG` names",
        )
    if first.stage == "loss":
        return (
            UNCONFIRMED,
            f"off by {first.error:.1e} where rounding may have grown to {first.cap:.1e}, the losses before it agree: "
            f"the update after {update - 1} or one before it (gradients, clip, moments, step)",
            TRAPS["parameter"],
        )
    why = f"off by {first.error:.1e} (rounding: {first.cap:.1e}) while the loss agrees: the backward pass"
    return UNCONFIRMED, why, TRAPS["gradient norm"]


def _decisions(histories: tuple[History, History], before: float) -> Verdict | None:
    """Where the health policy acted otherwise in one run than in the other, at an update no later than `before`.

    Each run's own figures say what the policy had to do. If both runs did that, a figure near the limit is the reason.
    """
    ours, theirs = (history.decisions for history in histories)
    common = set(histories[0].updates) & set(histories[1].updates)
    differ = sorted(update for update in common if ours.get(update, "apply") != theirs.get(update, "apply"))
    wrong = [history.decisions_that_differ()[:1] for history in histories]
    blamed = [(found[0], side) for found, side in zip(wrong, SIDES, strict=True) if found]
    if not blamed or min(blamed)[0] > before or not differ:
        return None
    update, side = min(blamed)
    taken = [decisions.get(update, "nothing") for decisions in (ours, theirs)]
    return Verdict(
        "health",
        f"the health policy did {taken[0]} at update {update} of the first run and {taken[1]} of the second; by the "
        f"code as it is, the losses and norms of the {side} run ask for something else",
        f"decision on update {update}",
        float("inf"),
        traps="a window that isn't kept at a resume, skipped updates in the window, a comparison that no NaN passes",
    )


UNCONFIRMED, ROUNDING = "unconfirmed", "rounding or kernel"
ARITHMETIC = "data", "train", "optimizer", "schedule", "precision", "health"
"""Sections that say what is computed; `execution` says how."""
SECTIONS = (*ARITHMETIC, "execution")

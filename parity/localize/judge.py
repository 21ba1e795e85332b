"""What two computations' taps say: rows of errors, the first that parts, a verdict, a table, a picture, a npz."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity.localize.rows import Row, Verdict
from parity.localize.traps import size_hint, traps_of


def judge(rows: Sequence[Row], precision: str = "float64") -> Verdict:
    """The verdict on rows in the order of search; the first that parts is named."""
    first = next((row for row in rows if row.parts), None)
    if first is None:
        if not rows:
            return Verdict("same", "nothing was compared")
        worst = max(rows, key=lambda row: row.load)
        return Verdict(
            "same",
            f"nothing parts in {precision}: the worst of {len(rows)} figures is {worst.title} with "
            f"{worst.error:.1e} (cap {worst.cap:.0e})",
        )
    before = _predecessor(first, rows)
    others = [row.title for row in rows if row.parts and row is not first and row.stage == first.stage]
    note = f" ({first.note})" if first.note else ""
    sentence = (
        f"{first.title}{note} parts in {precision}: error {first.error:.1e}, floor of a correct pair {first.floor:.0e}"
    )
    sentence += f"{beside(first, before)}. "
    if first.teacher_forced is not None and others and first.stage in ("forward", "cotangent"):
        sentence += (
            f"The same teacher-forced error in {', '.join(others[:4])}{' and others' if len(others) > 4 else ''}. "
        )
    kind = "schedule" if first.name == "learning rate" else "data" if first.stage == "data" else "algorithm"
    error = first.error if np.isfinite(first.error) else float("inf")
    hint = size_hint(error) if precision == "float64" and kind == "algorithm" else ""
    if not np.isfinite(error):
        hint = "Missing on one side, of another shape, or not a number. "
    return Verdict(
        kind, (sentence + hint).strip(), first.title, error, first.floor,
        before.title if before else "", before.error if before else 0.0, traps_of(first),
    )  # fmt: skip


def beside(row: Row, before: Row | None) -> str:
    """What a sentence on a row that parts says of the row before it, and of the values of a cotangent."""
    said = ""
    if before is not None:
        relation = "what it is made of" if before.name in row.parents else "what comes before it"
        said += f"; {relation}, {before.title}, agrees ({before.error:.1e})"
    if row.stage == "cotangent":
        said += "; the values agree: the fault is in the backward pass between the two"
    return said


def _predecessor(first: Row, rows: Sequence[Row]) -> Row | None:
    """The worst of what the row is made of (for a cotangent: of those it comes from), or else the row before it."""
    parents = [row for row in rows if row.stage == first.stage and row.name in first.parents and not row.parts]
    if parents:
        return max(parents, key=lambda row: row.error)
    at = rows.index(first)
    return rows[at - 1] if at and not rows[at - 1].parts else None

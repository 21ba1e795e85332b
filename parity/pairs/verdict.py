"""The verdict on a pair: rounding never outranks a bug, and float32 inside a float64 model is no bug."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from parity.localize.judge import beside
from parity.localize.rows import Row, Verdict
from parity.localize.traps import size_hint, traps_of
from parity.pairs.engine import ISLAND, LEAST, Look
from parity.pairs.through import Way

EXACT = 1e-12
"""What differs by less was computed in float64, whatever dtypes its masks and constants had."""
NEAR = 1e-3
"""The first row whose size, in its own floor, is within so much of the largest one's leads."""
ALIKE = 0.5
"""One constant makes errors of one size in values and in what goes back: the first such row leads, whatever its last
bits."""
LEAST_LIKELY = 1e-9
"""An error below this is hardly float32's: a constant of 24 bits is off by up to 6e-8, seldom by so little."""
LIBRARIES = ("linen/", "nnx/", "nn/", "flax/", "equinox/")
"""Beginnings of short paths of code that models call."""
NARROWLY = ISLAND * LEAST["float32"]


def verdict_on(rows: Sequence[Row], wide: Look, narrow: Look | None, noises: Mapping[str, float]) -> Verdict:
    """What the rows say. `noises`: by title, the rounding of float32 that was measured at a row."""
    parted = [row for row in rows if row.parts]
    small = [row for row in parted if LEAST_LIKELY <= row.error <= max(NARROWLY, ISLAND * noises.get(row.title, 0.0))]
    bugs = [row for row in parted if row not in small]
    if not parted:
        return Verdict("same", _agree(rows, wide))
    if not bugs:
        largest = max(row.error for row in small)
        worst = next(row for row in small if row.error >= ALIKE * largest)
        return Verdict(
            "dtype policy",
            f"{worst.title} and {len(small) - 1} more part by no more than float32's rounding ({worst.error:.1e} "
            f"where float32 alone makes {noises.get(worst.title, LEAST['float32']):.1e}), though neither side computes "
            "in float32 there: a constant or a table of float32 on one side",
            worst.title, worst.error, worst.floor,
        )  # fmt: skip
    lead = _lead(bugs)
    before = _before(lead, rows)
    size = "" if np.isfinite(lead.error) else " parts"
    sentence = f"{lead.title}{size}: "
    if np.isfinite(lead.error):
        sentence += f"error {lead.error:.1e}, where rounding makes {lead.floor:.0e}"
    else:
        sentence += lead.note or "not a number"
        sentence += _of_float64(lead, wide, narrow)
    sentence += f"{beside(lead, before)}. "
    others = [row.title for row in bugs if row is not lead and row.stage == lead.stage]
    if others:
        sentence += f"Also in {', '.join(others[:4])}{' and others' if len(others) > 4 else ''}. "
    error = lead.error if np.isfinite(lead.error) else float("inf")
    odd = "NaN" in lead.note
    return Verdict(
        "not a number" if odd else "algorithm",
        (sentence + ("" if odd or not np.isfinite(error) else size_hint(error))).strip(),
        lead.title, error, lead.floor, before.title if before else "", before.error if before else 0.0, traps_of(lead),
    )  # fmt: skip


def _lead(bugs: Sequence[Row]) -> Row:
    """The first among the large ones: forced errors don't grow, so that a small one elsewhere is another matter."""

    def size(row: Row) -> float:
        return row.error / max(row.floor, 1e-17) if np.isfinite(row.error) else float("inf")

    largest = max(size(row) for row in bugs)
    if np.isinf(largest):
        return next(row for row in bugs if np.isinf(size(row)))
    return next(row for row in bugs if size(row) >= NEAR * largest)


def _before(lead: Row, rows: Sequence[Row]) -> Row | None:
    parents = [row for row in rows if row.stage == lead.stage and row.name in lead.parents and not row.parts]
    if parents:
        return max(parents, key=lambda row: row.error)
    at = rows.index(lead)
    return rows[at - 1] if at and rows[at - 1].stage == lead.stage and not rows[at - 1].parts else None


def _agree(rows: Sequence[Row], wide: Look) -> str:
    if not rows:
        return "nothing was compared"
    islands = [row for row in rows if row.floor >= LEAST["float32"] and row.error > EXACT]
    exact = [row for row in rows if row not in islands]
    text = f"nothing parts in {len(rows)} figures"
    if exact:
        worst = max(exact, key=lambda row: row.error)
        text += f"; in float64 the worst is {worst.title} with {worst.error:.1e} (cap {worst.cap:.0e})"
    if islands:
        worst = max(islands, key=lambda row: row.load)
        text += (
            f"; {len(islands)} of them go through a narrower dtype, and differ by its rounding: at worst "
            f"{worst.title}, {worst.error:.1e} of {worst.cap:.1e} allowed"
        )
    return text


def _of_float64(lead: Row, wide: Look, narrow: Look | None) -> str:
    """Whether a NaN is there in float64 alone."""
    if narrow is None or "NaN" not in lead.note or lead.stage not in ("forward", "cotangent"):
        return ""
    part = "values" if lead.stage == "forward" else "cotangents"
    found = [getattr(record, part).get(lead.name) for record in (narrow.ours, narrow.forced)]
    if any(array is None or np.isnan(array).any() for array in found):
        return ", in float32 too"
    return (
        " (in float32 neither side has one there: judging in float64 makes it, as where float64's most negative number "
        "becomes -inf in a float32 softmax)"
    )


def where(lead: Row, wide: Look, told: Collection[str] = ()) -> list[str]:
    """Lines of code between a row's tap and the taps before it, on each side; for a cotangent, after it.

    Of the sides in `told` only the dtypes: their lines are known better.
    """
    names = lead.parents if lead.stage == "cotangent" else (lead.name,)
    notes = []
    for side, at in (("torch", 0), ("JAX", 1)):
        way = Way()
        for name in names:
            way = way.and_then(wide.ways.get(name, (Way(), Way()))[at])
        if way.lines and side not in told:
            notes.append(f"{side}'s code of it: {places(way.lines)}")
        if way.narrow:
            notes.append(f"{side} computes in {way.narrow} there: {_short(way.where)}")
    return notes


def islands(wide: Look) -> list[str]:
    """Where either side computes below the run's dtype, one line for each place in the code."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for name, ways in wide.ways.items():
        for side, way in zip(("torch", "JAX"), ways, strict=True):
            if way.narrow and name in wide.free.values:
                places.setdefault((side, way.narrow, way.where), []).append(name)
    return [
        f"{side} computes in {dtype} at {_short(place) or 'an unknown line'}: {', '.join(names[:3])}"
        f"{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for (side, dtype, place), names in places.items()
    ]


def _short(line: str) -> str:
    """A line of code with the last two parts of its file's path."""
    path, _, rest = line.rpartition(":")
    return f"{'/'.join(path.split(os.sep)[-2:])}:{rest}" if path else rest


def places(lines: frozenset[str]) -> str:
    """Lines by file and function, as `file.py:3,7-9 (f)`, the model's own before those of libraries."""
    found: dict[tuple[str, str], set[int]] = {}
    for line in lines:
        match = re.fullmatch(r"(.*):(\d+) \((.*)\)", line)
        if match and not match.group(1).endswith("deprecation.py"):
            path, number, function = match.groups()
            found.setdefault(("/".join(path.split(os.sep)[-2:]), function), set()).add(int(number))
    texts = []
    # the model's own code before that of the libraries that it calls
    for (path, function), numbers in sorted(found.items(), key=lambda one: one[0][0].startswith(LIBRARIES)):
        runs: list[list[int]] = []
        for number in sorted(numbers):
            if runs and number <= runs[-1][1] + 2:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        spans = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
        texts.append(f"{path}:{spans} ({function})")
    return "; ".join(texts[:6]) + (f"; and {len(texts) - 6} more" if len(texts) > 6 else "")

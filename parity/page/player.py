"""localize.html: the localizer's verdict, and a player that walks through the taps, torch and JAX side by side."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coretrain.base.files import write_atomically
from coretrain.journal.chart import Line, chart
from parity.page.film import LARGEST, Frame, Grid
from parity.page.render import render

CURVES = {"loss": ("Loss", "nats a token"), "norm": ("Gradient norm", "before the clip")}
"""Stages of two runs that are curves over updates."""
WORDS = {"forward": "", "cotangent": "cotangent of "}
ARRAYS = ("torch", "jax", "difference", "at")
"""Arrays of a grid, in the order in which the page has them."""


class Judged(Protocol):
    """A report of the localizer."""

    title: str
    rows: list[Any]
    verdict: Any
    arrays: dict[str, np.ndarray]
    reproduce: str
    frames: list[Frame]

    def rest(self) -> list[Any]:
        """The rows that are no taps, the worst of each kind."""


def write_player(report: Judged, page: Path) -> None:
    """Write the page of a report."""
    told, grids = packed(report.frames, report.rows, report.verdict.tap)
    taps = [row for row in report.rows if row.stage in WORDS]
    reduced = sum(math.prod(f.shapes[0] or ()) > g.at.size for f in report.frames for g in list(f.grids.values())[:1])
    text = render(
        "localize.html",
        ("localize.css",),
        ("localize.js",),
        title=report.title,
        verdict=report.verdict,
        reproduce=report.reproduce,
        notes=getattr(report, "notes", []),
        film={"frames": told, "grids": grids} if told else None,
        ways=[way for way in ("forced", "free") if any(way in frame.grids for frame in report.frames)],
        reduced=reduced,
        whole=any(name.startswith(("torch/", "jax/")) for name in report.arrays),
        limit=LARGEST,
        charts=curves(report.rows, report.arrays),
        taps=[_row(row, report.verdict.tap) for row in taps],
        rest=[_row(row, report.verdict.tap) for row in report.rest()],
    )
    write_atomically(page, text)


def _row(row: Any, first: str) -> dict[str, Any]:
    return {
        "title": row.title, "note": row.note, "free": row.free, "forced": row.teacher_forced, "cap": row.cap,
        "floor": row.floor, "parts": row.parts, "first": row.title == first, "error": row.error,
    }  # fmt: skip


def packed(frames: Sequence[Frame], rows: Iterable[Any], first: str = "") -> tuple[list[dict[str, Any]], str]:
    """(what the player says of each frame, all grids in base64); `unpacked` is the way back.

    A frame's `ways` has the byte at which each grid begins: torch, jax and difference as float32, then the elements'
    places as uint32, each [tall, wide], little-endian.
    """
    judged = {(row.stage, row.name): row for row in rows}
    told, chunks, size = [], [], 0
    for frame in frames:
        row = judged.get((frame.stage, frame.name))
        ways, tall, wide = {}, 0, 0
        for way, grid in frame.grids.items():
            ways[way], (tall, wide) = size, grid.at.shape
            chunk = b"".join(getattr(grid, name).astype("<u4" if name == "at" else "<f4").tobytes() for name in ARRAYS)
            chunks.append(chunk)
            size += len(chunk)
        title = WORDS.get(frame.stage, "") + frame.name
        told.append(
            {
                "stage": frame.stage, "title": title, "torch": frame.shapes[0], "jax": frame.shapes[1],
                "dtypes": frame.dtypes, "unit": frame.unit, "rms": frame.rms, "tall": tall, "wide": wide, "ways": ways,
                "free": _number(row and row.free), "forced": _number(row and row.teacher_forced),
                "cap": _number(row and row.cap), "floor": _number(row and row.floor),
                "parts": bool(row and row.parts), "first": title == first, "note": row.note if row else "",
                "judged": row is not None,
            }
        )  # fmt: skip
    return told, base64.b64encode(b"".join(chunks)).decode()


def unpacked(told: Sequence[dict[str, Any]], grids: str) -> list[dict[str, Grid]]:
    """The grids of each frame, by way of running, of what `packed` has made."""
    raw = base64.b64decode(grids)
    found = []
    for frame in told:
        shape = frame["tall"], frame["wide"]
        count = shape[0] * shape[1]
        ways = {}
        for way, start in frame["ways"].items():
            parts = {
                name: np.frombuffer(raw, "<u4" if name == "at" else "<f4", count, start + 4 * count * place)
                for place, name in enumerate(ARRAYS)
            }
            ways[way] = Grid(**{name: part.reshape(shape) for name, part in parts.items()})
        found.append(ways)
    return found


def _number(value: float | None) -> float | str | None:
    """As JSON has it: no infinity there."""
    return None if value is None else float(value) if math.isfinite(value) else "inf"


def curves(rows: Iterable[Any], arrays: dict[str, np.ndarray]) -> list[str]:
    """Charts of two runs: how far apart they are at each update, with what rounding may make, and both their losses."""
    figures = []
    rows = list(rows)
    for stage, (title, unit) in CURVES.items():
        of = [row for row in rows if row.stage == stage]
        if len(of) < 2:
            continue
        updates = [int(row.name.rsplit(" ", 1)[-1]) for row in of]
        lines = [Line("the runs", [_drawn(r.error) for r in of]), Line("allowed", [_drawn(r.cap) for r in of], "faint")]
        figures.append(chart(f"{title}, how far apart", "relative", updates, lines, log=True))
        key = "grad_norm" if stage == "norm" else stage
        pair = [arrays.get(f"{side}/{key}") for side in ("first", "second")]
        if all(array is not None and len(array) == len(updates) for array in pair):
            both = [
                Line(f"{side} run", np.asarray(array, float).tolist(), look)
                for side, array, look in zip(("first", "second"), pair, ("main", "faint"), strict=True)
            ]
            figures.append(chart(title, unit, updates, both))
    return figures


def _drawn(value: float | None) -> float:
    return math.nan if value is None else float(value)

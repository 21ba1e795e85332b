"""What both sides made of every tap, reduced to small grids: the frames of the localizer's player.

Tensors are as large as a model's activations, and a page must be small. Each tensor is laid out as rows x channels and
cut into at most `MOST_CELLS` cells; a cell keeps the one element in it that differs most, in both frameworks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

MOST_CELLS = 512
"""Cells of a grid at most."""
MOST_CHANNELS = 32
"""Cells beside each other; four times as many where there are few rows."""
LARGEST = 1_500_000
"""Bytes that all grids of a film may take: of a deep model each grid is smaller."""
CELL = 16
"""Bytes of a cell: both values, their difference, and the place of the element."""
FEWEST = 16
"""Cells of a grid at least, where the tensor has so many."""


class Recorded(Protocol):
    """What a recorder saw: arrays by the name of the tap, in order."""

    values: dict[str, np.ndarray]
    cotangents: dict[str, np.ndarray]
    dtypes: dict[str, str]


@dataclass(frozen=True)
class Grid:
    """Cells of one comparison, [rows, channels] each.

    `torch` and `jax` are over the frame's `unit`, and so is `difference` (JAX less torch; not a number where a NaN, or
    an infinity of one alone, is met). `at` is the element's place in the flattened tensor.
    """

    torch: np.ndarray
    jax: np.ndarray
    difference: np.ndarray
    at: np.ndarray


@dataclass(frozen=True)
class Frame:
    """One tap: forward its value, backward its cotangent. `grids` is by the way of running, "free" and "forced"."""

    stage: str
    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    """Of torch and of JAX; None where the tap is missing."""
    dtypes: tuple[str, str]
    unit: float = 1.0
    rms: float = 1.0
    """Root of the mean square of torch's finite elements, over `unit`."""
    grids: Mapping[str, Grid] = field(default_factory=dict)


def film(torch: Recorded, free: Recorded | None, forced: Recorded | None) -> list[Frame]:
    """The frames of two records: values in torch's order, then cotangents from the last to the first.

    `free` is JAX on its own values, `forced` JAX going on with torch's; either may be missing.
    """
    ways = {name: record for name, record in (("forced", forced), ("free", free)) if record is not None}
    theirs = next(iter(ways.values()), None)
    taps = [
        (stage, part, name)
        for stage, part in (("forward", "values"), ("cotangent", "cotangents"))
        for name in _names(stage, getattr(torch, part), getattr(theirs, part, {}))
    ]
    cells = max(FEWEST, min(MOST_CELLS, LARGEST // (CELL * max(1, len(taps) * len(ways)))))
    return [_frame(stage, part, name, torch, ways, cells) for stage, part, name in taps]


def _names(stage: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> list[str]:
    """Names of both in torch's order; one that only JAX has follows the name before it."""
    names, last = list(ours), ""
    for name in theirs:
        if name not in ours:
            names.insert(names.index(last) + 1 if last in names else 0, name)
        last = name
    return names if stage == "forward" else names[::-1]


def _frame(stage: str, part: str, name: str, torch: Recorded, ways: Mapping[str, Recorded], cells: int) -> Frame:
    ours = getattr(torch, part).get(name)
    theirs = {way: getattr(record, part).get(name) for way, record in ways.items()}
    other = next((array for array in theirs.values() if array is not None), None)
    dtypes = torch.dtypes.get(name, ""), next((r.dtypes[name] for r in ways.values() if name in r.dtypes), "")
    shapes = (None if ours is None else ours.shape), (None if other is None else other.shape)
    if ours is None or other is None or ours.shape != other.shape or not ours.size:
        return Frame(stage, name, shapes, dtypes)
    plain = np.asarray(ours, np.float64)
    finite = np.abs(plain[np.isfinite(plain)])
    unit = float(finite.max(initial=0.0)) or 1.0
    rms = float(np.sqrt(np.mean((finite / unit) ** 2))) if finite.size else 0.0
    grids = {way: grid(ours, array, unit, cells) for way, array in theirs.items() if array is not None}
    return Frame(stage, name, shapes, dtypes, unit, rms, grids)


def grid(ours: np.ndarray, theirs: np.ndarray, unit: float = 1.0, cells: int = MOST_CELLS) -> Grid:
    """Two arrays of one shape in at most `cells` cells, each its element that differs most; values over `unit`."""
    a, b = (np.asarray(array, np.float64).reshape(sheet(ours.shape)) for array in (ours, theirs))
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, b - a)
    size = np.where(np.isnan(apart), np.inf, np.abs(apart))
    rows, channels = layout(ours.shape, cells)
    tall, wide = (edges(whole, parts) for whole, parts in zip(a.shape, (rows, channels), strict=True))
    row = np.stack([size[start:end].argmax(0) + start for start, end in tall])  # [rows, C]: the worst of each column
    worst = np.take_along_axis(size, row, 0)
    column = np.stack([worst[:, start:end].argmax(1) + start for start, end in wide], 1)  # [rows, channels]
    row = np.take_along_axis(row, column, 1)
    with np.errstate(over="ignore"):
        torch, jax, difference = ((array[row, column] / unit).astype(np.float32) for array in (a, b, apart))
    return Grid(torch, jax, difference, (row * a.shape[1] + column).astype(np.uint32))


def sheet(shape: Sequence[int]) -> tuple[int, int]:
    """A tensor as rows x channels: the last axis is channels, all others are rows."""
    channels = shape[-1] if shape else 1
    return int(np.prod(shape[:-1], dtype=int)) if shape else 1, channels


def layout(shape: Sequence[int], cells: int = MOST_CELLS) -> tuple[int, int]:
    """Rows and channels of a tensor's grid."""
    rows, channels = sheet(shape)
    tall = min(rows, max(1, cells // min(channels, MOST_CHANNELS)))
    return tall, min(channels, 4 * MOST_CHANNELS, max(1, cells // tall))


def edges(whole: int, parts: int) -> list[tuple[int, int]]:
    """`whole` neighbours in `parts` runs of nearly one length; player.js makes the same."""
    return [(whole * i // parts, whole * (i + 1) // parts) for i in range(parts)]

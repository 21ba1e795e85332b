"""Sums and means of what a mask lets through, each rounded once: no order of rows and no padding changes a bit."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def kept(values: Any, mask: Mask) -> Floats:
    """`values` as float64, 0 outside the mask, whatever stands there: NaN x 0 would be NaN."""
    return np.where(mask, np.asarray(values, np.float64), 0.0)


def total(values: Floats) -> float:
    """The sum of all values, as if it were computed without rounding and rounded once at the end.

    A NaN or an infinity among them shows in the result.
    """
    if np.isfinite(values).all():
        with contextlib.suppress(OverflowError):  # beyond the largest float64
            return math.fsum(values.ravel().tolist())
    with np.errstate(over="ignore", invalid="ignore"):
        return float(values.sum())


def row_totals(values: Any, mask: Mask) -> Floats:
    """The sum of each row's masked values, [B]."""
    return np.array([total(row) for row in kept(values, mask)], np.float64)


def mean(values: Floats) -> float:
    """The mean of values [N]; 0 of none. Of equal values it is that value to the bit.

    They are summed as distances from the least, which are exactly 0 where all are equal.
    """
    if not len(values):
        return 0.0
    least = float(values.min())
    return least + total(values - least) / len(values)


def variance(values: Floats) -> float:
    """The unbiased variance (divisor N - 1) of values [N]; 0 of fewer than two. Of equal values it is exactly 0."""
    if len(values) < 2:
        return 0.0
    return total((values - mean(values)) ** 2) / (len(values) - 1)

"""How far a score may be off: intervals of means, and of the difference of two runs on the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 2000
"""Samples of a bootstrap: its bounds then vary by about a twentieth of the interval."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether 0 is outside the interval."""
        return self.low > 0 or self.high < 0


def share(hits: Floats) -> Estimate:
    """A mean of zeros and ones, with Wilson's interval (1927), which also holds near 0 and 1."""
    n, z = len(hits), 1.959963984540054
    p = float(hits.mean())
    middle, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Estimate(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def ratio(above: Floats, below: Floats, seed: int = 0) -> Estimate:
    """sum(above) / sum(below) over rows, with a percentile bootstrap of the rows (Efron 1979)."""
    value = float(above.sum() / below.sum())
    if len(above) < 2:
        return Estimate(value, -math.inf, math.inf)
    generator, found = np.random.default_rng(seed), np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 100):  # 100 resamples of many rows fit into memory
        drawn = generator.integers(0, len(above), (100, len(above)))
        found[start : start + 100] = above[drawn].sum(1) / below[drawn].sum(1)
    low, high = np.quantile(found, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def difference(after: Floats, before: Floats, weights: Floats | None = None, seed: int = 0) -> Estimate:
    """Weighted mean of after - before over rows, paired: both are of the same rows, and so is each resample."""
    moved = after - before
    weights = np.ones(len(moved)) if weights is None else weights
    return ratio(moved * weights, weights, seed)

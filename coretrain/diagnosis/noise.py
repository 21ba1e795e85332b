"""The gradient noise scale: how many rows a batch needs before more rows stop helping.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", appendix A.1: of a batch of B rows the gradient's
squared norm is |G|² + S/B in the mean, with G the true gradient and S the trace of the covariance of one row's. Two
sizes give both, without bias; their ratio S/|G|² is the noise scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLED, COVERED = 2000, 0.9


@dataclass(frozen=True)
class Noise:
    """The noise scale in rows, with an interval."""

    rows: float
    """S/|G|²; inf where the gradient isn't told from noise."""
    low: float
    high: float
    signal: float
    """|G|², squared norm of the true gradient."""
    spread: float
    """S, for one row."""


def noise_scale(
    large: Sequence[float], small: Sequence[Sequence[float]], rows: int, piece: int, seed: int = 0
) -> Noise:
    """Of K batches: the gradient norm of each whole batch of `rows`, and those of its pieces of `piece` rows each.

    The interval is a bootstrap over the batches, 90%. Raises ValueError where there is no second size.
    """
    if not 0 < piece < rows or not large or len(large) != len(small):
        raise ValueError(f"{len(large)} batches of {rows} rows, {len(small)} of pieces of {piece}")
    whole = np.square(np.array(large, float))
    parts = np.array([np.mean(np.square(one)) for one in small])

    def estimated(whole: float, part: float) -> tuple[float, float]:
        signal = (rows * whole - piece * part) / (rows - piece)
        return signal, (part - whole) / (1 / piece - 1 / rows)

    signal, spread = estimated(whole.mean(), parts.mean())
    drawn = np.random.default_rng(seed).integers(len(whole), size=(RESAMPLED, len(whole)))
    each = [_ratio(*estimated(whole[at].mean(), parts[at].mean())) for at in drawn]
    edge = (1 - COVERED) / 2
    ordered = sorted(each)
    low, high = ordered[int(edge * RESAMPLED)], ordered[math.ceil((1 - edge) * RESAMPLED) - 1]
    return Noise(_ratio(signal, spread), low, high, signal, spread)


def _ratio(signal: float, spread: float) -> float:
    return math.inf if signal <= 0 else max(0.0, spread) / signal


def advice(noise: Noise, batch_size: int) -> str:
    """What a noise scale says of a batch size. At that many rows an update makes half a noiseless one's progress."""
    if math.isinf(noise.rows):
        return "the gradient isn't told from noise: a larger batch, or the run is at its end"
    if batch_size < noise.low / 2:
        return "a larger batch would need fewer updates, with hardly more tokens in all"
    if batch_size > noise.high * 2:
        return "a smaller batch would need fewer tokens, with hardly more updates"
    return "the batch size fits"

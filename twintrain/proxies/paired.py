"""Which of two is better on held-out documents, with an interval: over documents, over seeds, and over both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
REPEATS = 10_000
"""Of the bootstrap over documents."""
LEVEL = 0.95


@dataclass(frozen=True)
class Scores:
    """One held-out text: UTF-8 bytes of its documents [D], and the bits that each seed's model needs for them."""

    sizes: Array
    a: Array
    """Bits [S, D] of A's models."""
    b: Array
    """Bits [S, D] of B's models, of the same seeds."""

    def bits_per_byte(self) -> tuple[Array, Array]:
        """Of each seed [S], for A and for B: all bits over all bytes."""
        return self.a.sum(1) / self.sizes.sum(), self.b.sum(1) / self.sizes.sum()


@dataclass(frozen=True)
class Difference:
    """Bits per byte of B less those of A: above 0 where A is better. Half widths are of 95% intervals."""

    a: Array
    """Bits per byte of A's models [S], the mean of all held-out texts."""
    b: Array
    documents: tuple[float, float]
    """Interval where only the documents are drawn anew: these very models on other text of this kind."""
    seeds: float
    """Half width by the spread of seeds: other models of the same data."""
    value: float

    @property
    def interval(self) -> tuple[float, float]:
        """Interval over both, whose half widths add as squares: other models on other text."""
        low, high = (math.hypot(self.value - end, self.seeds) for end in self.documents)
        return self.value - low, self.value + high

    @property
    def better(self) -> str:
        """A, B, or nothing where the interval holds 0."""
        low, high = self.interval
        return "A" if low > 0 else "B" if high < 0 else ""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "a": self.a.tolist(),
            "b": self.b.tolist(),
            "b_less_a": self.value,
            "interval": list(self.interval),
            "interval_documents": list(self.documents),
            "half_width_seeds": self.seeds,
            "better": self.better,
        }


def difference(texts: Sequence[Scores], seed: int = 0) -> Difference:
    """The difference on several held-out texts of one weight each, by the same seeds in each.

    The bootstrap is paired: a document is drawn with the bits of all models, within its own text (Koehn 2004). The
    spread over seeds is pooled from A and B: a t interval with 2(S - 1) degrees of freedom, at S = 2 4.3 standard
    errors wide, S >= 2.
    """
    a, b = (np.mean(side, axis=0) for side in zip(*(one.bits_per_byte() for one in texts), strict=True))
    value = float((b - a).mean())
    random = np.random.default_rng([seed, 0x636F6D70])
    drawn: Array = np.mean([_drawn(one, random) for one in texts], axis=0)
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Difference(a, b, (float(low), float(high)), half_width(a, b), value)


def _drawn(text: Scores, random: np.random.Generator) -> Array:
    """Differences [REPEATS] on as many documents, drawn with replacement."""
    count = len(text.sizes)
    less = (text.b - text.a).mean(0)
    drawn = [random.integers(0, count, (min(100, REPEATS), count)) for _ in range(REPEATS // 100)]
    return np.concatenate([less[rows].sum(1) / text.sizes[rows].sum(1) for rows in drawn])


def half_width(a: Array, b: Array) -> float:
    """Of the 95% interval of mean(b) - mean(a) over seeds, by the pooled variance (Student's t)."""
    from scipy.stats import t

    count = len(a)
    pooled = (a.var(ddof=1) + b.var(ddof=1)) / 2
    return float(t.ppf((1 + LEVEL) / 2, 2 * (count - 1)) * math.sqrt(2 * pooled / count))


def verdict(one: Difference, names: Mapping[str, str]) -> str:
    """The outcome as a sentence; `names` are those of A and B."""
    low, high = one.interval
    interval = f"95% interval {low:+.4f} to {high:+.4f} (B less A), {len(one.a)} seeds of each"
    if one.better:
        other = "B" if one.better == "A" else "A"
        return (
            f"{one.better} ({names[one.better]}) is better than {other} ({names[other]}): its models need "
            f"{abs(one.value):.4f} bits per byte less, {interval}."
        )
    return (
        f"A ({names['A']}) and B ({names['B']}) are not told apart: they differ by {one.value:+.4f} bits per byte, "
        f"{interval}. More seeds or more updates may tell them apart."
    )

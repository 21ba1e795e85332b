"""The best mixture by a regression over small runs, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coretrain.corpus.mixture.regression import Array, Fit, chosen, fit, mean_error

REPEATS = 400
"""Of the bootstrap over proxies."""
POSSIBLE = 2000
"""Mixtures among which a repeat looks for its best."""
STARTS = 4
"""Mixtures from which the best is looked for."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    fit: Fit
    best: Array
    """Shares [K] of the lowest expected loss."""
    low: Array
    """[K] Of 95% of the bootstrap's best mixtures."""
    high: Array
    gain: float
    """Expected loss of the natural mixture less that of the best."""
    interval: tuple[float, float]
    """Of the gain, 95% of the bootstrap."""
    mean_error: float
    """Of saying the proxies' mean loss instead of the regression's."""

    @property
    def told_apart(self) -> bool:
        """Whether the best is told from the natural mixture.

        The gain's interval must be above 0, the gain above the error on runs left out, and the regression of some use.
        """
        return self.interval[0] > 0 and self.gain > self.fit.error and self.fit.error < self.mean_error

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "form": self.fit.form,
            "penalty": self.fit.penalty,
            "error_left_out": self.fit.error,
            "error_of_the_mean": self.mean_error,
            "best": self.best.tolist(),
            "best_interval": [self.low.tolist(), self.high.tolist()],
            "gain": self.gain,
            "gain_interval": list(self.interval),
            "told_apart": self.told_apart,
        }


def search(shares: Array, losses: Array, natural: Array, caps: Array, seed: int) -> Found:
    """The best mixture by proxies [N, K] of known losses [N]; `caps` [K] are the largest shares allowed.

    Looked for between the least and the largest share that any proxy had of each source: nothing is known beyond. The
    bootstrap draws the proxies anew, with the form and penalty chosen once. Deterministic.
    """
    model = chosen(shares, losses)
    best = lowest(model, shares, natural, caps)
    random = np.random.default_rng([seed, len(losses)])
    possible = _between(np.concatenate([shares, natural[None], best[None]]), random)
    bests, gains = [], []
    for _ in range(REPEATS):
        rows = np.sort(random.integers(0, len(losses), len(losses)))
        again = fit(shares[rows], losses[rows], model.form, model.penalty)
        bests.append(possible[again(possible).argmin()])
        gains.append(_gain(again, natural, best))
    low, high = np.percentile(bests, [2.5, 97.5], axis=0)
    interval = np.percentile(gains, [2.5, 97.5])
    return Found(
        model,
        best,
        low,
        high,
        _gain(model, natural, best),
        (float(interval[0]), float(interval[1])),
        mean_error(losses),
    )


def _between(corners: Array, random: np.random.Generator) -> Array:
    """The mixtures given, and `POSSIBLE` between three of them each: within every cap and range that these keep."""
    threes = random.integers(0, len(corners), (POSSIBLE, 3))
    parts = random.dirichlet(np.ones(3), POSSIBLE)
    return np.concatenate([corners, (corners[threes] * parts[:, :, None]).sum(1)])


def _gain(model: Fit, natural: Array, best: Array) -> float:
    before, after = model(np.stack([natural, best]))
    return float(before - after)


def lowest(model: Fit, shares: Array, other: Array, caps: Array, starts: int = STARTS) -> Array:
    """The mixture of the lowest expected loss within what the proxies [N, K] tried and the caps [K].

    SLSQP (Kraft 1988) from `other` and from the `starts` proxies that the regression likes best.
    """
    from scipy.optimize import minimize

    tried = np.concatenate([shares, other[None]])
    low, high = tried.min(0), np.minimum(tried.max(0), caps)
    low = np.minimum(low, high)
    order = np.argsort(model(shares), kind="stable")[:starts]
    found = [other]
    for start in (other, *shares[order]):
        inside = np.clip(start, low, high)
        result = minimize(
            lambda one: float(model(one)[0]),
            inside,
            method="SLSQP",
            bounds=list(zip(low, high, strict=True)),
            constraints={"type": "eq", "fun": lambda one: one.sum() - 1},
        )
        if np.isfinite(result.x).all() and abs(result.x.sum() - 1) < 1e-6:
            point = np.clip(result.x, low, high)
            found.append(point / point.sum())
    values = model(np.stack(found))
    return found[int(values.argmin())]

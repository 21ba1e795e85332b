"""From a mixture's shares to its loss: ridge regression, judged by what it says of runs that it hasn't seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Of ridge, on columns of unit variance."""


def linear(shares: Array) -> Array:
    """The shares [N, K] themselves."""
    return shares


def logarithmic(shares: Array) -> Array:
    """Their logarithms [N, K]: a source matters more for its first tokens than for later ones."""
    return np.log(shares)


def quadratic(shares: Array) -> Array:
    """The shares and their products by two [N, K + K(K+1)/2]: the least form that has a best mixture inside."""
    pairs = itertools.combinations_with_replacement(range(shares.shape[1]), 2)
    return np.concatenate([shares, np.stack([shares[:, i] * shares[:, j] for i, j in pairs], 1)], 1)


FORMS: dict[str, Callable[[Array], Array]] = {
    "linear": linear,
    "logarithmic": logarithmic,
    "quadratic": quadratic,
}


@dataclass(frozen=True)
class Fit:
    """A regression: `form` of the shares, and the `penalty` of ridge."""

    form: str
    penalty: float
    middle: Array
    scale: Array
    slopes: Array
    level: float
    left_out: Array
    """[N] What it says of each run when that run is left out, less what the run's loss was."""

    def __call__(self, shares: Array) -> Array:
        """Expected losses [N] of mixtures [N, K]."""
        columns = FORMS[self.form](np.atleast_2d(shares))
        return self.level + ((columns - self.middle) / self.scale) @ self.slopes

    @property
    def error(self) -> float:
        """Root of the mean squared error on runs left out."""
        return float(np.sqrt(np.mean(self.left_out**2)))


def fit(shares: Array, losses: Array, form: str, penalty: float) -> Fit:
    """Ridge regression on mixtures [N, K] and losses [N], N >= 2; the level is free of the penalty.

    The errors of leave-one-out come without fitting N times: residual over 1 - h, h the diagonal of the hat matrix
    (Hoerl and Kennard's ridge; Allen 1974's PRESS).
    """
    columns = FORMS[form](shares)
    count = len(losses)
    middle, scale = columns.mean(0), columns.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    unit = (columns - middle) / scale
    left, values, right = np.linalg.svd(unit, full_matrices=False)
    shrunk = values / (values**2 + penalty * count)
    level = float(losses.mean())
    slopes = right.T @ (shrunk * (left.T @ (losses - level)))
    hat = (left**2 * (values * shrunk)).sum(1) + 1 / count
    residual = level + unit @ slopes - losses
    # h is 1 where a run alone decides its own value: nothing is known of what it would be without it
    left_out = residual / np.maximum(1 - hat, 1e-9)
    return Fit(form, penalty, middle, scale, slopes, level, left_out)


def chosen(shares: Array, losses: Array) -> Fit:
    """The form and the penalty whose error on runs left out is least, the simpler where two are equal."""
    fits = (fit(shares, losses, form, penalty) for form in FORMS for penalty in reversed(PENALTIES))
    return min(fits, key=lambda one: one.error)


def mean_error(losses: Array) -> float:
    """The error left out of saying the mean of the other runs, whatever the mixture: what a regression must beat."""
    count = len(losses)
    return float(np.sqrt(np.mean(((losses - losses.mean()) * count / (count - 1)) ** 2)))

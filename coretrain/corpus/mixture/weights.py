"""Weights of a mixture's sources: by their tokens, by a temperature, by hand; and a cap on the epochs of small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coretrain.base.errors import UserError
from coretrain.base.parse import shown

Shares = NDArray[np.float64]
"""What each source is of the whole [K]: above 0, 1 together."""
ROUNDING = 1e-9
"""By which sums of shares may miss 1."""


def normal(numbers: Shares) -> Shares:
    """The numbers, 1 together."""
    shares: Shares = numbers / numbers.sum()
    return shares


def by_temperature(tokens: ArrayLike, temperature: float = 1.0) -> Shares:
    """Shares p_i ~ tokens_i^(1/T): 1 is in proportion to tokens, infinity is the same for each.

    Source: the sampling of languages in multilingual models (Devlin 2018's exponent is 1/T; Conneau et al. 2019).
    """
    logs = np.log(np.asarray(tokens, np.float64)) / temperature
    shares: Shares = np.exp(logs - logs.max())  # the largest is 1: no overflow at a small T
    return normal(shares)


def by_hand(text: str, sources: Sequence[str]) -> Shares:
    """Shares from numbers as typed, `3,1,1`, one for each source. Raises `UserError`."""
    try:
        numbers = [float(word) for word in text.split(",")] if text.isascii() else []
    except ValueError:
        numbers = []
    if len(numbers) != len(sources) or not all(0 < number < np.inf for number in numbers):
        raise UserError(
            "corpus/weights-unreadable",
            f"--weights {shown(text)}: give a number above 0 for each of the {len(sources)} sources, as 3,1",
        )
    largest = max(numbers)
    return normal(np.array([number / largest for number in numbers]))


def capped(shares: Shares, tokens: ArrayLike, budget: float, epochs: float) -> Shares:
    """The shares where no source is read more than `epochs` times in a run of `budget` tokens.

    What is above a cap is shared among the others in their proportions, as often as it takes ("water-filling"): source
    i gets min(cap_i, c x share_i), with one c for all. Raises `UserError` where all sources together don't suffice.
    """
    sizes = np.asarray(tokens, np.float64)
    caps = epochs * sizes / budget
    if caps.sum() < 1 - ROUNDING:
        raise UserError(
            "corpus/mixture-too-small",
            f"the sources have {int(sizes.sum()):,} tokens, and a run of {int(budget):,} reads them "
            f"{budget / sizes.sum():.3g} times, more than --epochs {epochs:g}: raise it, train on fewer tokens, or "
            "give more text",
        )
    full = np.zeros(len(caps), np.bool_)
    result = np.array(shares, np.float64)
    while (above := ~full & (result > caps)).any():
        full |= above
        if full.all():
            return normal(caps)
        rest = shares[~full].sum()
        result = np.where(full, caps, shares * ((1 - caps[full].sum()) / rest))
    return normal(result)


def epochs_of(shares: Shares, tokens: ArrayLike, budget: float) -> NDArray[np.float64]:
    """How many times a run of `budget` tokens reads each source [K]."""
    read: NDArray[np.float64] = np.asarray(shares) * budget / np.asarray(tokens, np.float64)
    return read


def as_config(sources: Sequence[str], shares: Shares) -> list[dict[str, Any]]:
    """`data.mixture` of a run's config."""
    return [{"source": source, "weight": round(float(share), 6)} for source, share in zip(sources, shares, strict=True)]

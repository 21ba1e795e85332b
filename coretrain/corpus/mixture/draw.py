"""Mixtures to try: drawn around what the sources are by themselves."""

from __future__ import annotations

import numpy as np

from coretrain.corpus.mixture.weights import ROUNDING, Shares

LEAST = 0.002
"""No share is drawn below it: a config takes no weight of 0, and the logarithm of a share stays finite."""
STRENGTHS = (0.5, 8.0)
"""Of Dirichlet's distribution, times the number of sources: at the lower end a source or two have nearly everything, at
the upper one mixtures lie close around the middle. RegMix draws from 0.1 to 5."""


def draw(natural: Shares, number: int, seed: int) -> Shares:
    """Proxy `number`'s shares [K]: a function of the three alone, so that more proxies can be added later.

    From a Dirichlet distribution around the natural shares, evened out (their square roots); its strength is drawn too.
    Source: RegMix (Liu et al. 2024, arXiv:2407.01492), which evens out so too.
    """
    random = np.random.default_rng([seed, number])
    middle = np.sqrt(natural) / np.sqrt(natural).sum()
    low, high = np.log(STRENGTHS)
    strength = len(natural) * np.exp(random.uniform(low, high))
    return floored(random.dirichlet(strength * middle))


def floored(shares: Shares) -> Shares:
    """The shares, none below `LEAST`; what that takes comes from the others in their proportions. To 6 decimals."""
    least = min(LEAST, 1 / len(shares))
    low = np.zeros(len(shares), np.bool_)
    result = shares / shares.sum()
    while (below := ~low & (result < least - ROUNDING)).any():
        low |= below
        rest = shares[~low].sum()
        result = np.where(low, least, shares * ((1 - least * low.sum()) / rest))
    result = np.round(result, 6)
    result[result.argmax()] += 1 - result.sum()
    rounded: Shares = np.round(result, 6)
    return rounded

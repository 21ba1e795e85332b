"""Logistic regression over hashed words, trained from good and bad examples, saved without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.classify.features import features
from coretrain.corpus.document import Signal
from coretrain.corpus.text.saved import load_arrays, save_arrays

_FORMAT = 1
_LEAST_BITS, _MOST_BITS = 8, 24
_ROUNDS = 200
_DECIMALS = 5
"""Of weights: two processors' minima are some 1e-13 apart."""


@dataclass(frozen=True)
class Classifier:
    """Weights [2 ** bits] and a bias."""

    weights: NDArray[np.float32]
    bias: float
    characters: int
    """How many characters of a text are looked at; 0 for all."""

    @property
    def bits(self) -> int:
        """Columns are 2 to the power of this."""
        return len(self.weights).bit_length() - 1

    def scores(self, texts: Sequence[str]) -> Signal:
        """[D] The probability of being like the good examples, had there been as many bad ones.

        Rounded to 6 decimals: logarithms differ in their last bits from processor to processor.
        """
        matrix = features(texts, self.bits, self.characters)
        products = matrix.data * self.weights[matrix.indices].astype(np.float64)
        owners = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        sums = np.bincount(owners, products, minlength=matrix.shape[0]) + self.bias  # one after another: the same bits
        scores: Signal = np.round(0.5 * (1 + np.tanh(0.5 * sums)), 6)
        return scores

    def save(self, path: Path) -> str:
        """Write it as .npz, whole or not at all; returns the file's SHA-256."""
        numbers = np.array([self.bias], np.float64)
        form = np.array([_FORMAT, self.characters])
        return save_arrays(path, {"format": form, "weights": self.weights, "bias": numbers})


def load(path: Path) -> Classifier:
    """A saved classifier. Raises `UserError` naming a file that is missing or no such model."""
    try:
        file = load_arrays(path)
        version, characters = file["format"].tolist()
        weights = file["weights"].astype(np.float32)
        (bias,) = file["bias"].tolist()
        sizes = [2**bits for bits in range(_LEAST_BITS, _MOST_BITS + 1)]
        if version != _FORMAT or characters < 0 or weights.ndim != 1 or len(weights) not in sizes:
            raise ValueError("another format")
        if not np.isfinite(bias) or not np.isfinite(weights).all():
            raise ValueError("no numbers")
    except OSError as error:
        raise UserError(
            "corpus/classifier-missing",
            f"the classifier {shown(str(path))} can't be read ({error.strerror}): correct its path",
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            "corpus/classifier-damaged", f"{shown(str(path))} is no classifier, or is damaged: train it again"
        ) from None
    return Classifier(weights, bias, characters)


def train(
    good: Sequence[str], bad: Sequence[str], bits: int = 18, decay: float = 1e-4, characters: int = 0
) -> Classifier:
    """A classifier of these examples; both kinds weigh the same, however many they are; their order changes nothing.

    The mean logistic loss plus `decay` / 2 times the weights' square is brought to its minimum, which is only one, by
    L-BFGS from zero. Raises `UserError` where one kind has no text with words.
    """
    from scipy import sparse
    from scipy.optimize import minimize  # a second to import, and every worker imports this file

    kinds = []
    for name, texts in (("good", good), ("bad", bad)):
        matrix = features(sorted(texts), bits, characters)
        kept = matrix[np.flatnonzero(np.diff(matrix.indptr))]
        if not kept.shape[0]:
            raise UserError(
                "corpus/classifier-no-examples", f"the {name} examples have no text with words: name other files"
            )
        kinds.append(kept)
    signs = np.concatenate([np.full(kinds[0].shape[0], 1.0), np.full(kinds[1].shape[0], -1.0)])
    shares = np.concatenate([np.full(one.shape[0], 0.5 / one.shape[0]) for one in kinds])
    columns = np.unique(np.concatenate([one.indices for one in kinds]))
    matrix = sparse.vstack(kinds, format="csr")[:, columns]
    transposed = matrix.T.tocsr()

    def loss(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (matrix @ point[:-1] + point[-1])
        slopes = -shares * signs * 0.5 * (1 - np.tanh(0.5 * margins))
        gradient = np.append(transposed @ slopes + decay * point[:-1], slopes.sum())
        return float(shares @ np.logaddexp(0, -margins) + 0.5 * decay * (point[:-1] @ point[:-1])), gradient

    found = minimize(loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B", options={"maxiter": _ROUNDS})
    weights = np.zeros(2**bits, np.float32)
    rounded = np.round(found.x, _DECIMALS)
    weights[columns] = rounded[:-1]
    return Classifier(weights, float(rounded[-1]), characters)


def threshold_for(scores: Signal, fraction: float) -> float:
    """The score that the best `fraction` of these documents have at least."""
    known = scores[~np.isnan(scores)]
    return float(np.quantile(known, 1 - fraction, method="higher")) if len(known) else float("nan")

"""Choosing tokens from logits by uniform numbers that both stacks share."""

import numpy as np
import pytest

from coretrain.errors import UserError
from coretrain.sampling import Sampling, choose_tokens

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = np.log(np.tile(PROBABILITIES, (20000, 1)))


def chosen(*sampling: float) -> np.ndarray:
    return choose_tokens(LOGITS, Sampling(*sampling), 0)


def test_shares_follow_the_probabilities():
    shares = np.bincount(chosen(1.0, 0, 1.0, 1), minlength=4) / len(LOGITS)
    assert np.abs(shares - PROBABILITIES).max() < 0.018  # five standard errors of the largest


def test_temperature_sharpens():
    shares = np.bincount(chosen(0.5, 0, 1.0, 1), minlength=4) / len(LOGITS)
    assert np.abs(shares - PROBABILITIES**2 / (PROBABILITIES**2).sum()).max() < 0.018


@pytest.mark.parametrize(
    ("sampling", "kept"), [((1.0, 2, 1.0, 1), {0, 1}), ((1.0, 0, 0.75, 1), {0, 1}), ((0.0, 0, 1.0, 1), {0})]
)
def test_what_is_kept(sampling, kept):
    assert set(chosen(*sampling)) == kept


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", ".")):
        Sampling(**wrong)

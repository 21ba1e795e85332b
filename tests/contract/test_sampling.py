"""Choosing tokens from logits by uniform numbers that both stacks share."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.contract.sampling import Sampling, choose_tokens

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


def test_equal_logits_are_kept_by_id():
    """As a stable sort of all logits has them, though only the largest are sorted."""
    logits = np.random.default_rng(0).integers(0, 9, (200, 60)).astype(float)
    last = np.take_along_axis(logits, np.argsort(-logits, kind="stable")[:, 11:12], -1)
    ids = np.concatenate([choose_tokens(logits, Sampling(4.0, 12, 1.0, 0), n)[:, None] for n in range(200)], 1)
    for row, cut, found in zip(logits, last, ids, strict=True):
        larger, equal = np.flatnonzero(row > cut), np.flatnonzero(row == cut)
        assert set(found) == {*larger, *equal[: 12 - len(larger)]}


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong)).replace("_", ".")):
        Sampling(**wrong)

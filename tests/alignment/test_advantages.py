"""Advantages, KL estimators, shares, corrections and rewards of tokens: each fact that is known of them holds."""

from __future__ import annotations

import pytest

from coretrain.alignment.advantages import group_advantages
from coretrain.alignment.corrections import corrections
from coretrain.alignment.shares import shares
from tests.support import known_advantages, known_shares
from tests.support.known_advantages import answers

FACTS = known_advantages.FACTS | known_shares.FACTS


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_holds(name):
    FACTS[name]()


def test_a_word_that_is_no_choice_is_none():
    mask, _ = answers()
    with pytest.raises(ValueError, match="median"):
        shares("median", mask, 4)
    with pytest.raises(ValueError, match="median"):
        group_advantages("median", [1.0, 2.0], mask[:2, 0].astype(int) * 0)
    with pytest.raises(ValueError, match="clip"):
        corrections("clip", "token", mask, mask, mask, 2.0)
    with pytest.raises(ValueError, match="row"):
        corrections("mask", "row", mask, mask, mask, 2.0)

"""A rollout's arrays and batches: each fact that is known of them holds."""

from __future__ import annotations

import pytest

from tests.support.known_rollouts import FACTS


@pytest.mark.parametrize("name", FACTS)
def test_a_fact_holds(name):
    FACTS[name]()

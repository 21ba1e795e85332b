"""What a batch must bring for an objective, and what its figures are called."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.alignment.figures import FIGURES, SUMS, counted, named
from coretrain.alignment.planes import PLANES, check_planes
from coretrain.config.objectives import FORMATS
from coretrain.data.batch import windows
from tests.support.refusal import refused

TEXT = windows(np.arange(12, dtype=np.int32).reshape(2, 6))


def test_every_objective_has_planes_and_figures():
    assert set(PLANES) == set(FIGURES) == set(FORMATS)
    assert all(len(set(names)) == len(names) for names in FIGURES.values())


@pytest.mark.parametrize("objective", FORMATS)
def test_planes_are_the_objectives_own(objective):
    """All that it needs, none that nobody reads; optional ones may be there."""
    needed, optional = PLANES[objective]
    batch = TEXT.with_planes(**{name: np.ones((2, 3)) for name in needed})
    check_planes(objective, batch)
    check_planes(objective, batch.with_planes(**{name: np.ones((2, 3)) for name in optional}))
    with refused("alignment/planes-of-another-objective", objective, "other"):
        check_planes(objective, batch.with_planes(other=np.ones((2, 3))))
    for name in needed:
        rest = {other: plane for other, plane in batch.planes.items() if other != name}
        with refused("alignment/planes-of-another-objective", objective, name):
            check_planes(objective, TEXT.with_planes(**rest))


def test_figures_are_means_over_what_counts():
    """Shares that sum to 1/2, as those of a constant divisor may: a ratio of 1 is still told as 1."""
    share = np.array([[0.125, 0.125, 0], [0.25, 0, 0]])
    batch = TEXT.with_planes(share=share, advantages=share, reference=share)
    told = named("grpo", [-0.25, 0.5, 1.0, 0.5, 0.125, 0.0], counted(batch))
    assert told == {
        "policy_loss": -0.25, "kl": 1.0, "entropy": 2.0, "ratio": 1.0, "clip_fraction": 0.25, "approx_kl": 0.0,
    }  # fmt: skip


def test_what_is_not_known_is_not_told():
    """No KL without a reference, no mean of nothing."""
    share = np.array([[0.5, 0.5], [0, 0]])
    batch = TEXT.with_planes(share=share, advantages=share)
    assert "kl" not in named("grpo", [0.0] * 6, counted(batch))
    nothing = TEXT.with_planes(share=0 * share, advantages=share)
    assert set(named("grpo", [0.0] * 6, counted(nothing))) == SUMS & set(FIGURES["grpo"])


def test_right_and_wrong_answers_have_means_of_their_own():
    """Weights 3/8 of the right ones, 1/4 of the wrong one: rewards 2 and -4."""
    share, desirable = np.array([[0.25, 0.25], [0.125, 0]]), np.array([[1, 0], [1, 0]])
    batch = TEXT.with_planes(sequence_share=share, desirable=desirable, reference=share, kl_baseline=share)
    told = named("kto", [0.375 * 2, 0.25 * -4, 0.375 * -8, 0.25 * -16, 0.375, 0.625 * 0.5], counted(batch))
    assert told == {
        "desirable_reward": 2, "undesirable_reward": -4, "desirable_logprob": -8, "undesirable_logprob": -16,
        "desirable": 0.6, "kl": 0.5,
    }  # fmt: skip
    right = TEXT.with_planes(sequence_share=share, desirable=1 + 0 * desirable, reference=share, kl_baseline=share)
    assert "undesirable_reward" not in named("kto", [0.0] * 6, counted(right))


def test_pairs_and_text():
    pairs = TEXT.with_planes(pair_share=[[0.25, 0.25], [0.5, 0]])
    assert named("reward", [0.75, 1.5, 1.0, -0.5], counted(pairs)) == {
        "accuracy": 0.75, "margin": 1.5, "chosen_score": 1.0, "rejected_score": -0.5,
    }  # fmt: skip
    assert named("cross_entropy", [], counted(TEXT)) == {}

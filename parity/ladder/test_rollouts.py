"""GRPO and PPO as whole runs in float64, rollouts included: both stacks sample the same ids and learn alike from them.

A sampled id is a step function of the weights: one that differs would part the runs for good.
"""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.contract.parameters import initial_parameters
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.gates import ROLLOUTS
from parity.outcomes import hold
from parity.probes.rollouts import OBJECTIVES, config_of, moved, trained
from torchtrain.trainer import Trainer as TorchTrainer

UPDATES, HALF = 20, 10
"""PPO has 4 updates in a rollout: half of them end in the middle of one."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Prepared prompts."""
    return tmp_path_factory.mktemp("cache")


def hold_equal(ours, theirs, start, what):
    """The ids of every update, and so the rewards, are equal; parameters as far apart as rounding takes them."""
    assert ours.ids == theirs.ids
    assert [row["reward"] for row in ours.rows] == [row["reward"] for row in theirs.rows]
    assert len({str(ids) for ids in ours.ids}) > 1, "one batch again and again would prove nothing"
    hold(ROLLOUTS, moved(ours, theirs, start), what)


@pytest.fixture(scope="module", params=OBJECTIVES)
def runs(request, cache, tmp_path_factory):
    """A run of each stack: (config, start, in torch, in JAX)."""
    config = config_of(request.param, UPDATES, cache)
    start, folder = initial_parameters(config.model, 5), tmp_path_factory.mktemp(request.param)
    return (
        config,
        start,
        trained(TorchTrainer, config, folder / "torch", start),
        trained(JaxTrainer, config, folder / "jax", start),
    )


def test_both_stacks_sample_the_same_ids_at_every_update(runs):
    config, start, ours, theirs = runs
    hold_equal(ours, theirs, start, f"{config.train.objective}, {UPDATES} updates")
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        assert a["gap_max"] < 1e-12, "the sampler is the trainer"
        for name in ("loss", "entropy", "answer_kl", "ratio"):
            assert a[name] == pytest.approx(b[name], rel=1e-9, abs=1e-12), name


def test_a_rate_that_is_off_by_a_hundred_millionth_is_seen(runs, tmp_path):
    """The gate isn't blind: the same ids are sampled, and the weights are further apart than it allows."""
    config, start, ours, _ = runs
    lr = config.optimizer.lr * (1 + 1e-8)
    other = trained(TorchTrainer, config.changed(optimizer__lr=lr), tmp_path / "other", start)
    assert other.ids == ours.ids
    assert moved(ours, other, start) > 100 * ROLLOUTS.cap


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_stacks_may_be_swapped_in_the_middle(runs, first, tmp_path):
    """Ten updates in one stack, ten in the other: as far from twenty in one as the stacks are from each other."""
    config, start, ours, theirs = runs
    makers = [TorchTrainer, JaxTrainer] if first == "torch" else [JaxTrainer, TorchTrainer]
    half = trained(makers[0], config, tmp_path / "half", start, updates=HALF)
    assert bool(half.left.arrays) is (config.train.objective == "ppo"), "PPO is left in the middle of a rollout"
    whole = trained(makers[1], config, tmp_path / "whole", start, half.left)
    assert half.ids + whole.ids == ours.ids
    hold(ROLLOUTS, moved(whole, theirs, start), f"{config.train.objective}, {first} first")


@pytest.mark.parametrize("maker", [TorchTrainer, JaxTrainer])
def test_a_run_that_goes_on_is_the_same_run_bit_for_bit(runs, maker, tmp_path):
    """In one stack, wherever in a rollout it was left."""
    config, start, *both = runs
    whole = both[maker is JaxTrainer]
    half = trained(maker, config, tmp_path / "half", start, updates=HALF - 1)
    rest = trained(maker, config, tmp_path / "rest", start, half.left)
    assert half.ids + rest.ids == whole.ids
    assert {name: np.array_equal(value, whole.parameters[name]) for name, value in rest.parameters.items()} == (
        dict.fromkeys(whole.parameters, True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_200_updates(objective, cache, tmp_path):
    config = config_of(objective, 200, cache)
    start = initial_parameters(config.model, 5)
    both = [trained(maker, config, tmp_path / maker.name, start) for maker in (TorchTrainer, JaxTrainer)]
    hold_equal(*both, start, f"{objective}, 200 updates")

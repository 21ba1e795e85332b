"""What the sort presets teach, as whole runs in torch: a checked reward works, a reward model is gamed, DPO's loss
hides a model that dies, and a likelihood term saves it.

Measured with seeds 1337, 2 and 3 of the run that learns (2 cores, float32), of sampled held-out answers the share that
is right: the start .34; GRPO .988 .984 .973; PPO .957 .984; DPO .004 .012; DPO with the term .934 .969. On a reward
model PPO had .117 at the end, while the model's score of the answers rose from 7.6 after 40 updates to 10.5. PPO's two
runs are `slow`: the others take three minutes of one core, the start included.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coretrain.journal.metrics import read_metrics
from tests.support.commands import environment

pytestmark = pytest.mark.whole

RIGHT = 0.90
"""Least share of right answers after learning from a program's reward."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working folder whose runs/ has the start and the reward model, once they were asked for."""
    return tmp_path_factory.mktemp("lessons")


@pytest.fixture(scope="module")
def evaluations(place):
    """A function: a preset's evaluations, in a run of torch."""

    def run(preset: str, *more: str) -> list[dict]:
        folder = place / "-".join([preset, *(word.split("=")[0].strip("-") for word in more)])
        words = [preset, *more, "--journal.tensorboard=false", f"--output={folder}"]
        command = [sys.executable, "-m", "torchtrain.run", *words]
        done = subprocess.run(
            command, cwd=place, env=environment(), capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return read_metrics(folder)[1]

    return run


def test_grpo_sharpens_what_the_model_knows(evaluations):
    found = evaluations("sort-grpo")
    assert found[-1]["val_reward"] >= RIGHT


@pytest.mark.slow
def test_ppo_does_so_with_values(evaluations):
    found = evaluations("sort-ppo")
    assert found[-1]["val_reward"] >= RIGHT


def test_dpos_loss_falls_while_the_model_dies(evaluations):
    found = evaluations("sort-dpo")
    assert found[-1]["val_accuracy"] >= 0.99
    assert found[-1]["val_loss"] <= 0.05
    assert found[-1]["val_chosen_logprob"] <= -5, "-1.1 at the start"
    assert found[-1]["val_reward"] <= 0.25


def test_a_likelihood_term_saves_it(evaluations):
    found = evaluations("sort-dpo-nll")
    assert found[-1]["val_accuracy"] >= 0.99
    assert found[-1]["val_reward"] >= 0.85
    assert found[-1]["val_chosen_logprob"] >= -1


@pytest.mark.slow
def test_a_reward_model_that_is_right_on_its_pairs_is_gamed(evaluations):
    """Its score rises, the truth falls below what a program's reward reaches, and below the start's."""
    found = evaluations("sort-ppo", "--align.reward=preset:sort-reward", "--align.reward_clip=5")
    assert found[-1]["val_reward"] > found[0]["val_reward"]
    assert found[-1]["val_truth"] <= 0.70

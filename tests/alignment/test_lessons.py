"""What the sort presets teach, as whole runs in torch: a checked reward works, a reward model is gamed, DPO's loss
hides a model that dies, and a likelihood term saves it.

The short form has the presets' objectives and losses, on four digits, with a smaller model and larger rates: a start of
400 updates that all runs share, then 40 to 80 updates each, a minute of one core in all. Measured with seeds 1337, 2
and 3 of the run that learns (float32), of sampled held-out answers the share that is right: the start .33; GRPO .89
.84 .80; PPO .85 .73 .77; DPO .00 .02 .00; DPO with the term .88 .81 .83.

The presets as they are stand below it, `slow`: six minutes of one core and more. Measured likewise: the start .34; GRPO
.988 .984 .973; PPO .957 .984; DPO .004 .012; DPO with the term .934 .969. On a reward model PPO had .117 at the end,
while the model's score of the answers rose from 7.6 after 40 updates to 10.5.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from coretrain.journal.metrics import read_metrics
from tests.support.commands import environment

pytestmark = pytest.mark.whole

SMALL = [
    "--model.layers=2", "--model.width=64", "--model.heads=2", "--data.source=task:sort?rows=8000&length=4",
    "--data.validation_fraction=0.04", "--data.prepare_processes=1", "--train.sample_tokens=0",
    "--train.log_interval=200", "--checkpoint.interval=400",
]  # fmt: skip
START = ["--model.context=12", "--train.updates=400", "--train.eval_interval=400", "--schedule.warmup_updates=30"]
ASKED = ["--model.context=12", "--align.tokens=6", "--optimizer.lr=5e-4"]
CHOSEN = ["--model.context=24", "--train.updates=40", "--train.eval_interval=20", "--optimizer.lr=1e-3"]

RIGHT, LEARNT = 0.90, 0.60
"""Least share of right answers after learning from a program's reward: of a preset, and in short. With the advantages
of the answers beside them it is 0 in short; where no answer has any it stays at the start's .33."""


def ran(place: Path, preset: str, *more: str) -> list[dict]:
    """A preset's evaluations, in a run of torch whose working folder is `place`."""
    folder = place / "-".join([preset, *(word.split("=")[0].strip("-") for word in more if "align.reward" in word)])
    words = [preset, *more, "--journal.tensorboard=false", f"--output={folder}"]
    command = [sys.executable, "-m", "torchtrain.run", *words]
    done = subprocess.run(
        command, cwd=place, env=environment(), capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return read_metrics(folder)[1]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A function: the evaluations of a preset's short form. It begins with a start that is trained once."""
    place = tmp_path_factory.mktemp("short")
    small = [*SMALL, f"--data.cache={place / 'cache'}"]
    began = ran(place, "sort-sft", *small, *START)
    assert 0.2 <= began[-1]["val_reward"] <= 0.45, "right now and then: .33"
    return lambda preset, *more: ran(place, preset, *small, f"--train.start={place / 'sort-sft'}", *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function: the evaluations of a preset as it is. runs/ has the start and the reward model, once asked for."""
    place = tmp_path_factory.mktemp("lessons")
    return lambda preset, *more: ran(place, preset, *more)


def test_grpo_sharpens_what_the_model_knows(short):
    found = short("sort-grpo", *ASKED, "--train.updates=50", "--train.eval_interval=50")
    assert found[-1]["val_reward"] >= LEARNT


def test_ppo_does_so_with_values(short):
    found = short("sort-ppo", *ASKED, "--train.updates=80", "--train.eval_interval=80")
    assert found[-1]["val_reward"] >= LEARNT


def test_dpos_loss_falls_while_the_model_dies(short):
    found = short("sort-dpo", *CHOSEN)
    assert found[-1]["val_accuracy"] >= 0.98
    assert found[-1]["val_loss"] <= 0.2, ".11, .12, .12; .69 at the start"
    assert found[-1]["val_chosen_logprob"] <= -4, "-30, -8, -30; -1 at the start"
    assert found[-1]["val_reward"] <= 0.15


def test_a_likelihood_term_saves_it(short):
    found = short("sort-dpo-nll", *CHOSEN)
    assert found[-1]["val_accuracy"] >= 0.98
    assert found[-1]["val_reward"] >= LEARNT
    assert found[-1]["val_chosen_logprob"] >= -0.6, "-.20, -.25, -.21"


@pytest.mark.slow
def test_the_preset_of_grpo(whole):
    assert whole("sort-grpo")[-1]["val_reward"] >= RIGHT


@pytest.mark.slow
def test_the_preset_of_ppo(whole):
    assert whole("sort-ppo")[-1]["val_reward"] >= RIGHT


@pytest.mark.slow
def test_the_preset_of_dpo(whole):
    found = whole("sort-dpo")
    assert found[-1]["val_accuracy"] >= 0.99
    assert found[-1]["val_loss"] <= 0.05
    assert found[-1]["val_chosen_logprob"] <= -5, "-1.1 at the start"
    assert found[-1]["val_reward"] <= 0.25


@pytest.mark.slow
def test_the_preset_of_dpo_with_the_term(whole):
    found = whole("sort-dpo-nll")
    assert found[-1]["val_accuracy"] >= 0.99
    assert found[-1]["val_reward"] >= 0.85
    assert found[-1]["val_chosen_logprob"] >= -1


@pytest.mark.slow
def test_a_reward_model_that_is_right_on_its_pairs_is_gamed(whole):
    """Its score rises, the truth falls below what a program's reward reaches, and below the start's."""
    found = whole("sort-ppo", "--align.reward=preset:sort-reward", "--align.reward_clip=5")
    assert found[-1]["val_reward"] > found[0]["val_reward"]
    assert found[-1]["val_truth"] <= 0.70

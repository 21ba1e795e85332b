"""A run of PPO that is killed anywhere in a rollout ends, once it is gone on with, as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.support.commands import environment
from tests.support.whole_runs import rows, state

pytestmark = pytest.mark.whole

PLACES = [
    ("rollout 1", 0),
    ("the scores of rollout 1", 0),
    ("the rewards", 2),
    ("the gradients of update 6", 0),
    ("the end of update 7", 0),
    ("the seal of the save after update 6", 0),
]
"""Updates 0 to 3 are of rollout 0, 4 to 7 of rollout 1; saves after 3, 6 and 9 fall into the middle of one each. What
is kept, and who reads it, is the same in both stacks: in JAX one place is enough."""

FIELDS = {
    "model.layers": 1, "model.width": 16, "model.heads": 2, "model.context": 16, "model.score_head": "true",
    "data.source": "task:sort?rows=200&length=3", "data.format": "prompts", "data.tokenizer": "bytes",
    "data.chat_template": "bare", "data.validation_fraction": 0.1, "data.prepare_processes": 1,
    "train.objective": "ppo", "train.updates": 9, "train.batch_size": 8, "train.eval_interval": 5,
    "train.eval_batches": 1, "train.sample_tokens": 0, "schedule.warmup_updates": 1, "checkpoint.interval": 3,
    "journal.tensorboard": "false", "align.tokens": 4, "align.epochs": 2, "align.minibatches": 2,
    "align.kl_controller": "adaptive", "align.kl_target": 0.01,
    "align.kl_horizon": 64,
}  # fmt: skip


@pytest.mark.parametrize(("stack", "places"), [("torch", PLACES), ("jax", PLACES[2:3])], ids=["torch", "jax"])
def test_a_run_killed_anywhere_in_a_rollout_ends_bit_equal(stack, places, tmp_path):
    """The weight of the KL moves, answers and values are kept; a rollout that was cut off is made anew, the same."""
    words = [f"--{key}={value}" for key, value in (FIELDS | {"data.cache": tmp_path / "cache"}).items()]
    command = [sys.executable, "-m", "tests.support.killing", stack, json.dumps(places), str(tmp_path), *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    codes = json.loads(done.stderr.splitlines()[-1])
    assert codes == [0, *[-signal.SIGKILL, 0] * len(places)], done.stdout + done.stderr
    wanted, whole = rows(tmp_path / "whole"), state(tmp_path / "whole")
    assert len({row["kl_coefficient"] for row in wanted if "loss" in row}) == 3, "the coefficient must move"
    for number, place in enumerate(places):
        assert rows(tmp_path / str(number)) == wanted, place
        found = state(tmp_path / str(number))
        assert [name for name in whole if not np.array_equal(whole[name], found[name])] == [], place

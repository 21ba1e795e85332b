"""PPO in two torch processes is the same run as in one: the same answers, the same rewards, the same figures."""

from __future__ import annotations

import pytest

from coretrain.journal.metrics import read_metrics
from tests.support.whole_runs import run

pytestmark = pytest.mark.whole

FIELDS = {
    "model.layers": 1, "model.width": 16, "model.heads": 2, "model.context": 16, "model.score_head": "true",
    "data.source": "task:sort?rows=200&length=3", "data.format": "prompts", "data.tokenizer": "bytes",
    "data.chat_template": "bare", "data.validation_fraction": 0.1, "data.prepare_processes": 1,
    "train.objective": "ppo", "train.updates": 8, "train.batch_size": 8, "train.accumulation": 2,
    "train.eval_interval": 8, "train.eval_batches": 1, "train.sample_tokens": 0, "schedule.warmup_updates": 1,
    "checkpoint.interval": 8, "journal.tensorboard": "false", "align.tokens": 4, "align.minibatches": 2,
    "precision.compute": "float64",
}  # fmt: skip
APART = 1e-9
"""Measured 5e-15: sums in another order. Rows of another process, or a mean of means, are above 1e-3."""


def test_two_processes_make_the_same_rollouts(tmp_path):
    words = [f"--{key}={value}" for key, value in (FIELDS | {"data.cache": tmp_path / "cache"}).items()]
    run("torch", *words, f"--output={tmp_path / 'one'}")
    run("torch", *words, f"--output={tmp_path / 'two'}", "--parallel.data=2", "--spawn")
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for a, b in zip([*one[0], *one[1]], [*two[0], *two[1]], strict=True):
        assert a.keys() == b.keys()
        assert a.get("batch_hash") == b.get("batch_hash")
        for name in a.keys() - {"seconds", "batch_hash"}:
            assert a[name] == pytest.approx(b[name], rel=APART, abs=APART), name

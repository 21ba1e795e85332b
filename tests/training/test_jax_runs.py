"""Whole runs of jaxtrain on several devices and processes: one training, whoever goes on with it."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from coretrain.journal.metrics import read_metrics
from parity.compiling import quick_flags
from tests.support.refusal import refused
from tests.support.whole_runs import arguments, state

DOUBLE = ("--precision.compute", "float64", "--train.batch_size=8", "--train.sample_tokens=2")
EIGHT = quick_flags(8)


def run(stack: str, *argv: object, flags: str = quick_flags(), code: int = 0) -> str:
    """Standard output of a run (standard error where it must fail)."""
    result = subprocess.run(
        [sys.executable, "-m", f"{stack}train.run", *map(str, argv)],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stderr if code else result.stdout


@pytest.mark.whole
def test_one_training_on_8_devices_then_1_then_2_processes_then_in_torch(corpus, tmp_path):
    # float64: a shard, a moment or a row lost on the way can't hide in rounding. Measured: loss and norm 1e-15, state
    # 2e-14; a lost second moment gives 1e-2
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("jax", *arguments(corpus, *DOUBLE, "--output", whole))
    shared = ("--parallel.fsdp", 4, "--parallel.tensor", 2, "--schedule.horizon", 12, "--train.updates", 4)
    said = run("jax", *arguments(corpus, *DOUBLE, "--output", parts), *shared, flags=EIGHT)
    assert "fsdp 4 x tensor 2 = 8 devices" in said
    alone = ("--parallel.fsdp", 1, "--parallel.tensor", 1)
    run("jax", "--resume", parts, *alone, "--train.updates", 6, "--execution.vocab_multiple", 192)
    said = run("jax", "--resume", parts, "--parallel.fsdp", 2, "--parallel.tensor", 1, "--spawn", "--train.updates", 9)
    assert said.count("fsdp 2 = 2 devices") == 1, "one of the processes speaks"
    run("torch", "--resume", parts, *alone, "--train.updates", 12)
    for ours, theirs in zip(read_metrics(parts)[0], read_metrics(whole)[0], strict=True):
        assert ours["batch_hash"] == theirs["batch_hash"]
        assert abs(ours["loss"] - theirs["loss"]) < 1e-12, ours["update"]
        assert abs(ours["grad_norm"] - theirs["grad_norm"]) < 1e-12, ours["update"]
    wanted, got = state(whole), state(parts)
    for name in wanted:
        if "attention.k.bias" not in name:  # its gradient is zero in exact arithmetic: pure noise
            assert np.linalg.norm(wanted[name] - got[name]) < 1e-11 * np.linalg.norm(wanted[name]), name


def test_a_checkpoint_is_read_with_another_padding_of_the_vocabulary(small_config, tmp_path):
    """A larger tensor axis needs one. Every other shape is another model's."""
    from jaxtrain.trainer import Trainer

    config = small_config(model__tied="false", execution__vocab_multiple=64)
    rng = np.random.default_rng(0)
    trainer = Trainer(config)
    groups = {g: {n: rng.random(t.shape, np.float32) for n, t in ts.items()} for g, ts in trainer.export().items()}
    trainer.adopt(groups, 1)
    trainer.save(tmp_path).result()
    for multiple in (1, 192):
        other = Trainer(small_config(model__tied="false", execution__vocab_multiple=multiple))
        other.load(tmp_path, 1)
        assert len(other.params["head"]["weight"][...]) == (101 if multiple == 1 else 192)
        for group, tensors in other.export().items():
            for name, value in tensors.items():
                np.testing.assert_array_equal(value, groups[group][name], f"{group}/{name}")
    for field, value in (("vocab", 200), ("width", 64)):
        with refused("jax/checkpoint-shape-wrong"):
            Trainer(small_config(model__tied="false", **{f"model__{field}": value})).load(tmp_path, 1)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--parallel.tensor", "3"], "parallel"),
        (["--parallel.fsdp", "8", "--parallel.data", "2"], "parallel: data 2 x fsdp 8 = 16 devices, but there are 8"),
        (["--parallel.tensor", "8"], "parallel.tensor = 8 does not divide model.heads"),
        (["--parallel.coordinator", "127.0.0.1:1"], "parallel.hosts and parallel.host"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_sentence(argv, named, corpus, tmp_path):
    err = run("jax", *arguments(corpus, "--output", tmp_path / "bad"), *argv, flags=EIGHT, code=2)
    assert named in err
    assert "Traceback" not in err


@pytest.mark.whole
def test_devices_that_do_not_divide_the_rows_are_left_alone(corpus, tmp_path):
    said = run("jax", *arguments(corpus, "--output", tmp_path / "one", "--train.updates", "3"), flags=EIGHT)
    assert "one device: 8 are here, but they don't divide a micro-batch's 2 rows)" in said

"""Runs that an earlier version wrote, of config and checkpoint format 1, open as they did: they go on and speak.

`runs_of_version_1/` holds two of 4 updates, one of each stack, and what that version itself made of them: its batches
and losses when it went on to 6, and the text that it sampled from update 4. Torch's run has its interchange checkpoint,
JAX's has none and is translated.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import verify
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import batch_hash
from coretrain.data.batches import global_batch
from coretrain.data.open import open_data
from coretrain.inference.generate import open_for_generation
from coretrain.journal.metrics import read_metrics
from coretrain.runs.folder import open_run
from coretrain.training.runner import run

HERE = Path(__file__).parent / "runs_of_version_1"
EXPECTED = json.loads((HERE / "expected.json").read_text())
RUNS = pytest.mark.parametrize("written_by", ["torch", "jax"])
STACKS = pytest.mark.parametrize("stack", ["torch", "jax"])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A copy of both, in the working directory that their configs name their corpus from."""
    shutil.copytree(HERE, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path


def make_trainer(stack):
    return importlib.import_module(f"{stack}train.parallel.choose").make_trainer


@RUNS
def test_their_checkpoints_are_whole(written_by):
    """As they lie here; a file that was converted on its way would show."""
    for kind in ("checkpoints", "interchange") if written_by == "torch" else ("checkpoints",):
        folder = HERE / written_by / kind / "update-00000004"
        assert verify(folder).stack == written_by
        assert CheckpointFolder(folder.parent).complete() == [folder]


@RUNS
def test_their_batches_are_the_same_to_the_byte(written_by, place):
    config = open_run(Path(written_by)).changed(data__cache=str(place / "cache"))
    data = open_data(config, lambda line: None)
    assert [batch_hash(global_batch(data, config, update)) for update in range(6)] == EXPECTED["batch_hash"]


@pytest.mark.whole
@STACKS
@RUNS
def test_they_go_on_as_they_would_have_then(written_by, stack, place):
    """Float32's rounding apart, which other processors do otherwise.

    Floors: 0 in the stack that wrote it, 8.8e-8 of a loss and 5.5e-8 of a norm in the other. Moments that are lost
    change the loss after the next update by 1.1e-3 of it, a count of updates that is one less by 2.2e-4.
    """
    words = ["--resume", written_by, "--train.updates", "6", "--data.cache", str(place / "cache")]
    assert run([*words, "--journal.tensorboard", "false"], stack, make_trainer(stack)) == 0
    updates, evaluations, _ = read_metrics(Path(written_by))
    assert [row["update"] for row in updates] == list(range(6))
    assert [row["batch_hash"] for row in updates] == EXPECTED["batch_hash"]
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in updates[4:]] == pytest.approx(EXPECTED[written_by][name], rel=2e-6)
    assert evaluations[-1]["update"] == 6
    assert evaluations[-1]["val_loss"] == pytest.approx(EXPECTED[written_by]["val_loss"], rel=2e-6)


@pytest.mark.whole
@STACKS
@RUNS
def test_they_say_what_they_said_then(written_by, stack, place):
    """Sampled, so that each token hangs on whole distributions."""
    trainer = open_for_generation(Path(written_by), make_trainer(stack))
    assert trainer.generate([[100, 101, 102], [32]], 12, Sampling(0.8, 0, 0.95, 7), ()) == EXPECTED["text"]

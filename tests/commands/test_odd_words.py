"""Words of each verb that can't be meant: one sentence, before anything is loaded, computed or written."""

from __future__ import annotations

import jax
import pytest

import jaxtrain.parallel.processes
import torchtrain.parallel.processes
from coretrain.config.run import RunConfig
from coretrain.training import spawn
from coretrain.training.command_line import parse
from tests.support.nested import DEEP
from tests.support.refusal import refused
from twintrain.command import main

LONG = "1" * 19


@pytest.mark.parametrize(
    ("line", "code"),
    [
        *((f"generate run --temperature {word}", "command/bad-arguments") for word in ("nan", "inf", "-1", "x")),
        *((f"generate run --top-p {word}", "command/bad-arguments") for word in ("nan", "2", "-1")),
        *((f"generate run --tokens {word}", "command/bad-arguments") for word in ("-5", "1e3", LONG)),
        ("chat run --top-k -1", "command/bad-arguments"),
        (f"chat run --seed {LONG}{LONG}", "command/bad-arguments"),
        *((f"plan --on h100 --tokens {word}", "command/bad-arguments") for word in ("nan", "inf", "-1", "1e19")),
        ("plan --on h100 --served nan", "command/bad-arguments"),
        ("plan --on h100x99999999999999", "planning/too-many-devices"),
        (f"plan --on v5e:{LONG}x{LONG}", "planning/too-many-devices"),
        ("plan --on h100 --plot x.xyz", "base/picture-kind-unknown"),
        ("plan --on h100 --plot nowhere/x.png", "base/picture-folder-missing"),
        ("plan --on h100 --accelerators deep.toml", "planning/toml-invalid"),
        (f"plan --on h100 --data.mixture {DEEP}", "config/value-nested-too-deep"),
        ("twins run run x.xyz", "base/picture-kind-unknown"),
        ("twins run run x", "base/picture-kind-unknown"),
        *((f"localize --width {word}", "parity/option-not-positive") for word in (LONG, "0", "-1", "\u0663", "nan")),
        (f"localize --layers {LONG}", "parity/option-not-positive"),
        (f"localize --model.width {LONG}", "config/value-wrong"),
        (f"prepare --data.max_documents {LONG}9", "config/value-wrong"),
        ("docstrings x.jsonl --limit -1", "command/bad-arguments"),
    ],
)
def test_one_sentence(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.toml").write_text(f"a = {DEEP}")
    with refused(code) as caught:
        main(line.split())
    assert len(str(caught.value)) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["deep.toml"], "nothing is written"


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("WORLD_SIZE", "abc", "base/environment-number-wrong"),
        ("WORLD_SIZE", "1" * 5000, "base/environment-number-wrong"),
        ("RANK", "-1", "base/environment-number-wrong"),
        ("RANK", "", "base/environment-number-wrong"),
        ("RANK", "2", "processes/rank-beyond-world"),
        ("MASTER_PORT", "99999", "base/environment-number-wrong"),
        ("MASTER_PORT", "x", "base/environment-number-wrong"),
    ],
)
def test_what_a_launcher_can_not_have_told(name, text, code, monkeypatch):
    facts = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} | {name: text}
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for key, value in facts.items():
        monkeypatch.setenv(key, value)
    config = RunConfig().changed(parallel__data=2).with_vocab(300)
    for stack in (torchtrain, jaxtrain):
        with refused(code) as caught:
            stack.parallel.processes.join(config)
        assert len(str(caught.value)) < 600


def test_a_host_alone_is_not_passed_over():
    for fields in ({"host": 3}, {"host": 3, "hosts": 1}):
        with refused("jax/cluster-fields-incomplete", "parallel.host"):
            jaxtrain.parallel.processes.join(
                RunConfig().changed(**{f"parallel__{name}": value for name, value in fields.items()})
            )
    assert jaxtrain.parallel.processes.join(RunConfig().changed(parallel__host=0, parallel__hosts=1)).size == 1
    assert not jax.distributed.is_initialized()


def test_what_a_cluster_can_not_have_told(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "many")
    monkeypatch.setenv("SLURM_PROCID", "0")
    for name in ("SLURM_STEP_NODELIST", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "x")
    with refused("jax/cluster-environment-wrong"):
        jaxtrain.parallel.processes.join(RunConfig())


def test_no_machine_gets_a_thousand_processes(monkeypatch):
    monkeypatch.setattr(spawn.subprocess, "Popen", None)
    words = ["--parallel.data", "1000", "--train.batch_size", "1000", "--spawn"]
    with refused("training/spawn-too-many", "1000"):
        spawn.spawn("torchtrain.run", words, parse(words, "", ""))

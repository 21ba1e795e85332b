"""Whole runs as a user starts them: kills, signals, the other stack's checkpoints, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.journal.metrics import read_metrics
from tests.support.whole_runs import (
    arguments,
    rows,
    run,
    start,
    state,
    wait_for_updates,
)

pytestmark = pytest.mark.whole

STACKS = ("torch", "jax")
LONG = ("--train.updates", "60")


@pytest.fixture(scope="module", params=STACKS)
def whole(request, corpus, tmp_path_factory) -> tuple[str, Path]:
    """An undisturbed run of each stack."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    run(request.param, *arguments(corpus, "--output", str(folder), *LONG))
    return request.param, folder


def test_a_killed_and_resumed_run_ends_bit_equal(whole, corpus, tmp_path):
    stack, reference = whole
    folder = tmp_path / "killed"
    process = start(stack, *arguments(corpus, "--output", str(folder), *LONG))
    wait_for_updates(folder, 7, process)
    while process.poll() is None and not CheckpointFolder(folder / "checkpoints").complete():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    run(stack, "--resume", folder)
    assert rows(folder) == rows(reference)
    wanted, got = state(reference), state(folder)
    assert wanted.keys() == got.keys()
    assert [name for name in wanted if not np.array_equal(wanted[name], got[name])] == []


def test_a_run_killed_before_its_first_checkpoint_starts_again(corpus, tmp_path):
    folder = tmp_path / "early"
    process = start("torch", *arguments(corpus, "--output", str(folder), "--checkpoint.interval", "100000", *LONG))
    wait_for_updates(folder, 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run("torch", "--resume", folder)
    assert [row["update"] for row in read_metrics(folder)[0]] == list(range(60))


@pytest.mark.parametrize("stack", STACKS)
def test_sigterm_saves_and_leaves_with_exit_code_0(stack, corpus, tmp_path):
    folder = tmp_path / "preempted"
    process = start(stack, *arguments(corpus, "--output", str(folder), "--train.updates", "100000"))
    wait_for_updates(folder, 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"--resume {folder}" in out
    saved = CheckpointFolder(folder / "checkpoints").complete()[0]
    assert saved.name == f"update-{len(read_metrics(folder)[0]):08d}"


@pytest.mark.parametrize("first", STACKS)
def test_either_stack_goes_on_where_the_other_stopped(first, corpus, tmp_path):
    # float64, so that a moment, a count or a mask lost on the way can't hide in rounding: floor 1e-13, a lost second
    # moment gives 1e-2
    second = STACKS[1 - STACKS.index(first)]
    double = ("--precision.compute", "float64")
    whole, half = tmp_path / "whole", tmp_path / "half"
    run(first, *arguments(corpus, "--output", str(whole), *double))
    run(first, *arguments(corpus, "--output", str(half), *double, "--schedule.horizon", "12", "--train.updates", "6"))
    run(second, "--resume", half, "--train.updates", "12")
    for ours, theirs in zip(read_metrics(half)[0], read_metrics(whole)[0], strict=True):
        assert ours["batch_hash"] == theirs["batch_hash"]
        assert ours["lr"] == theirs["lr"]
        assert abs(ours["loss"] - theirs["loss"]) < 1e-11, ours["update"]
    wanted, got = state(whole), state(half)
    for name in wanted:
        if "attention.k.bias" not in name:  # its gradient is zero in exact arithmetic: pure noise
            error = np.linalg.norm(wanted[name] - got[name]) / np.linalg.norm(wanted[name])
            assert error < 1e-10, name


def test_a_damaged_newest_checkpoint_is_passed_over(whole, corpus, tmp_path):
    stack, _ = whole
    folder = tmp_path / "damaged"
    run(stack, *arguments(corpus, "--output", str(folder)))
    newest, older = CheckpointFolder(folder / "checkpoints").complete()[:2]
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    process = start(stack, "--resume", folder, "--train.updates", "13")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert newest.name in err
    assert f"update {int(older.name[7:])}" in out


def test_the_stacks_tell_the_same_story(corpus, tmp_path):
    for stack in STACKS:
        run(stack, *arguments(corpus, "--output", str(tmp_path / stack)))
    torch, jax = (read_metrics(tmp_path / stack) for stack in STACKS)
    assert [row["batch_hash"] for row in torch[0]] == [row["batch_hash"] for row in jax[0]]
    assert [row["lr"] for row in torch[0]] == [row["lr"] for row in jax[0]]
    # measured 5e-7 at most: float32 rounding of a loss near 5.5
    assert abs(torch[0][0]["loss"] - jax[0][0]["loss"]) < 3e-6
    assert abs(torch[1][-1]["val_loss"] - jax[1][-1]["val_loss"]) < 1e-3


BAD = {
    "unknown key": (["--model.hedas", "4"], "model.heads"),
    "heads that don't divide": (["--model.heads", "5"], "model.heads"),
    "kv heads that don't divide": (["--model.kv_heads", "3"], "model.kv_heads"),
    "a context longer than the data": (["--model.context", "100000"], "model.context"),
    "a missing file": (["--data.source", "no/such/file.txt"], "no/such/file.txt"),
    "a newer config": (["--version", "99"], "version"),
    "an unknown preset": (["gpt3"], "gpt3"),
    "a vocabulary too small": (["--model.vocab", "100"], "model.vocab"),
    "a kernel of the other stack": (["--execution.attention", "splash"], "execution.attention"),
    "a device that isn't there": (["--execution.device", "tpu"], "execution.device"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(case, corpus, tmp_path):
    more, named = BAD[case]
    base = [a for a in arguments(corpus) if not any(a.startswith(f"{m}=") for m in more)]
    positional = [m for m in more if not m.startswith("--")] if case == "an unknown preset" else []
    err = run("torch", *positional, *base, *([] if positional else more), "--output", tmp_path / "bad", code=2)
    assert named in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("stack", STACKS)
def test_resume_on_nothing_and_output_on_a_run(stack, corpus, tmp_path):
    assert "no/such" in run(stack, "--resume", "no/such", code=2)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    assert str(taken) in run(stack, *arguments(corpus, "--output", str(taken)), code=2)
    assert json.loads((taken / "config.json").read_text()) == {}


def test_an_empty_corpus_is_refused(corpus, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    err = run("torch", *arguments(corpus, "--data.source", str(tmp_path / "empty.txt")), code=2)
    assert "empty.txt" in err


def test_a_full_disk_keeps_the_last_checkpoint(corpus, tmp_path):
    resource = pytest.importorskip("resource")
    folder = tmp_path / "full"
    run("torch", *arguments(corpus, "--output", str(folder), "--train.updates", "4"))
    before = state(folder)
    size = max(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    process = start("torch", "--resume", folder, "--train.updates", "8", preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    assert [path.name for path in CheckpointFolder(folder / "checkpoints").complete()] == ["update-00000004"]
    assert all(np.array_equal(before[name], value) for name, value in state(folder).items())


def test_help_names_every_field(tmp_path):
    from coretrain.config.load import fields

    text = subprocess.run(
        [sys.executable, "-m", "torchtrain.run", "--help"], capture_output=True, text=True, check=True, cwd=os.getcwd()
    ).stdout
    assert [name for name in fields() if f"--{name}" not in text] == []

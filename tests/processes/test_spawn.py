"""The launcher: which rank it names, and the line that goes on with a run, by who started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coretrain.processes.heartbeat import SAID
from coretrain.processes.world import World
from coretrain.training import spawn
from coretrain.training.command_line import parse

KILLED, ABORTED = -signal.SIGKILL, -signal.SIGABRT


@pytest.mark.parametrize(
    ("ends", "rank"),
    [
        ({0: 1, 1: KILLED}, 1),  # its connection broke, and it was looked at first
        ({0: ABORTED, 1: KILLED, 2: ABORTED}, 1),
        ({2: 1, 0: 2, 1: 1}, 2),
        ({1: 1, 0: ABORTED}, 1),
        ({0: ABORTED, 1: 1}, 0),
        ({1: -signal.SIGSEGV, 0: KILLED}, 1),
        ({0: 1, 1: SAID, 2: KILLED}, 1),
    ],
)
def test_the_culprit_is_who_ended_by_itself(ends, rank):
    assert spawn.culprit(ends) == rank


def test_a_killed_rank_is_named_though_others_follow_at_once(capsys):
    scripts = ("exit 1", "kill -9 $$", "sleep 0.3; kill -6 $$")
    ranks = [subprocess.Popen(["sh", "-c", script]) for script in scripts]
    ranks[0].wait()
    ranks[1].wait()
    assert spawn._watch(ranks, lambda: "Go on.") == 1
    assert capsys.readouterr().err == "rank 1 of 3 was killed by SIGKILL; the others were ended. Go on.\n"


def test_who_stays_is_killed(capsys, monkeypatch):
    monkeypatch.setattr(spawn, "GRACE", 1.5)
    ranks = [subprocess.Popen(["sh", "-c", script]) for script in ("exit 2", "exec sleep 100")]
    started = time.monotonic()
    assert spawn._watch(ranks, lambda: "") == 2
    assert time.monotonic() - started < 20
    assert ranks[1].returncode == KILLED
    assert "rank 0 of 2 ended with exit code 2" in capsys.readouterr().err


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "8"}
DEEPSPEED = {"CROSS_SIZE": "1", "LOCAL_SIZE": "8"}


@pytest.mark.parametrize(
    ("told", "words", "size", "line"),
    [
        ({}, [], 1, "python -m torchtrain.run --resume 'a b'"),
        ({}, ["--spawn"], 2, "python -m torchtrain.run --resume 'a b' --spawn"),
        (TORCHRUN, [], 8, "torchrun --nproc-per-node 8 -m torchtrain.run --resume 'a b'"),
        (
            TORCHRUN | {"GROUP_WORLD_SIZE": "2"},
            [],
            16,
            "torchrun --nnodes 2 --nproc-per-node 8 -m torchtrain.run --resume 'a b' (on every node, its other options "
            "as before)",
        ),
        (DEEPSPEED, [], 8, "deepspeed --num_gpus 8 --module torchtrain.run --resume 'a b'"),
        (
            {},
            ["--parallel.host=1"],
            2,
            "python -m torchtrain.run --resume 'a b' --parallel.host I (on every host, with its own I)",
        ),
        ({}, [], 2, "python -m torchtrain.run --resume 'a b' (every process as before)"),
    ],
)
def test_the_line_that_goes_on(told, words, size, line, monkeypatch):
    for name in (*TORCHRUN, *DEEPSPEED):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    world = World()
    world.size = size
    assert spawn.line_that_goes_on("torchtrain.run", Path("a b"), parse(words, "", ""), world) == line


def test_a_run_that_had_not_begun_is_started_again(capsys, monkeypatch, tmp_path):
    """There is no folder yet to go on in."""
    dies = tmp_path / "dies"
    dies.write_text("#!/bin/sh\nkill -9 $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    folder = tmp_path / "run"
    for place, ending in (
        ("output", "The run had not begun: start it again"),
        ("resume", f"Go on with: python -m torchtrain.run --resume {folder} --spawn"),
    ):
        command = parse([f"--{place}={folder}", "--parallel.data=2", "--spawn"], "", "")
        assert spawn.spawn("torchtrain.run", [], command) == 1
        assert capsys.readouterr().err == f"rank 0 of 2 was killed by SIGKILL; the others were ended. {ending}\n"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(command.config.to_json())


def test_a_signal_that_is_ignored_is_not_passed_on(monkeypatch, tmp_path):
    """nohup has SIGHUP ignored, so that a run outlives its terminal; the ranks inherit that."""
    monkeypatch.setattr(sys, "executable", "true")
    during = {}
    monkeypatch.setattr(
        spawn, "_watch", lambda *_: during.update((n, signal.getsignal(n)) for n in spawn.PASSED_ON) or 0
    )
    command = parse([f"--output={tmp_path}", "--parallel.data=2", "--spawn"], "", "")
    before = {signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    before |= {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert spawn.spawn("torchtrain.run", [], command) == 0
        assert during[signal.SIGHUP] == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert callable(during[signal.SIGTERM])
        assert callable(during[signal.SIGINT])
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ctrl_c_before_the_run_begins_is_no_fault_of_a_rank(capsys, monkeypatch, tmp_path):
    """Some still load their modules, which the signal ends at once; others have come so far that they answer it."""
    interrupted = tmp_path / "interrupted"
    interrupted.write_text('#!/bin/sh\n[ "$RANK" = 0 ] && exit 130\nkill -INT $$\n')
    interrupted.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interrupted))
    command = parse([f"--output={tmp_path / 'run'}", "--parallel.data=2", "--spawn"], "", "")
    assert spawn.spawn("torchtrain.run", [], command) == 130
    assert capsys.readouterr().err == ""

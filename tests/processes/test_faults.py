"""Runs of several processes that go wrong: one is killed, stops, is told to end, or has a full disk."""

from __future__ import annotations

import functools
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import verify
from coretrain.processes.heartbeat import SAID
from coretrain.processes.launch import free_port
from coretrain.training.command_line import parse
from tests.support.commands import environment
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
TWO = ("--parallel.data", "2", "--spawn")
UPDATES = ("--train.updates", "40")
LIMITS = ("--parallel.silence", "12", "--parallel.timeout", "12")


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that `--spawn` started, by rank."""
    children = [child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


def launch(*argvs: list[str]) -> list[subprocess.Popen]:
    """Processes started as on several hosts: by hand, each with a command line of its own."""
    facts = {"WORLD_SIZE": len(argvs), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank, argv in enumerate(argvs):
        more = {name: str(value) for name, value in (facts | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        pipe = subprocess.PIPE
        command = [sys.executable, *map(str, argv)]
        started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(**more)))
    return started


def go_on(line: str, *more: str) -> str:
    """Run the line that a run has printed, as a shell would, with `more` arguments; standard output."""
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]
    result = subprocess.run([*words, *more], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def ended(process: subprocess.Popen, within: float) -> tuple[int, str]:
    """Exit code and stderr; nothing of the run may be left."""
    started = time.monotonic()
    _, err = process.communicate(timeout=within)
    assert time.monotonic() - started < within
    return process.returncode, err


@pytest.fixture(scope="module", params=STACKS)
def whole(request, corpus, tmp_path_factory) -> tuple[str, Path]:
    """An undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    run(request.param, *arguments(corpus, "--output", str(folder), *UPDATES, *TWO))
    return request.param, folder


def test_two_processes_train_as_one(whole, corpus, tmp_path):
    """Loss and norm of every update, to the float32 rounding of a sum in another order.

    Measured 1.8e-7 at worst. Sharing that trains something else is planted in test_zero.py, test_mesh.py.
    """
    stack, folder = whole
    run(stack, *arguments(corpus, "--output", str(tmp_path / "one"), *UPDATES))
    for one, two in zip(rows(tmp_path / "one"), rows(folder), strict=True):
        assert one.get("batch_hash") == two.get("batch_hash")
        for name in {"loss", "grad_norm", "val_loss"} & one.keys():
            assert one[name] == pytest.approx(two[name], rel=2e-6), one


def test_one_process_generates_from_a_run_of_two(whole):
    """How a run was shared is no matter for who has its folder."""
    stack, folder = whole
    command = [sys.executable, "-m", f"{stack}train.generate", str(folder), "def", "--tokens", "4"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.startswith("def")


def test_a_tensor_axis_waits_for_the_vocabulary(corpus, tmp_path):
    """Which only the data tells; whether the axis divides it is seen then."""
    words = arguments(corpus, "--output", str(tmp_path / "t"), "--parallel.tensor", "2", "--spawn")
    assert "finished" in run("torch", *words)


def test_a_killed_process_ends_the_run_and_it_goes_on_exactly(whole, corpus, tmp_path):
    stack, reference = whole
    folder = tmp_path / "killed"
    process = start(stack, *arguments(corpus, "--output", str(folder), *UPDATES, *TWO))
    wait_for_updates(folder, 9, process)
    while process.poll() is None and not CheckpointFolder(folder / "checkpoints").complete():
        time.sleep(0.001)
    ranks = ranks_of(process)
    victim = {"torch": 1, "jax": 0}[stack]  # with its first process JAX loses the place where all meet
    ranks[victim].kill()
    code, err = ended(process, 60)
    assert code == 1
    said, _, line = err.splitlines()[-1].partition(" Go on with: ")
    assert f"rank {victim} of 2 was killed by SIGKILL" in said
    assert not any(rank.is_running() for rank in ranks)
    go_on(line)
    assert rows(folder) == rows(reference)
    wanted, got = state(reference), state(folder)
    assert all((wanted[name] == got[name]).all() for name in wanted)


@pytest.mark.parametrize(("stack", "victim"), [("torch", 1), ("jax", 0)])
def test_a_process_that_stops_is_named(stack, victim, corpus, tmp_path):
    """Before JAX's coordinator misses its heartbeats, and ends the others in C++."""
    folder = tmp_path / "stopped"
    process = start(stack, *arguments(corpus, "--output", str(folder), "--train.updates", "4000", *TWO, *LIMITS))
    wait_for_updates(folder, 5, process)
    ranks = ranks_of(process)
    ranks[victim].suspend()
    code, err = ended(process, 60)
    assert code == 1
    assert f"rank {victim} (process {ranks[victim].pid} on" in err
    assert err.splitlines()[-1].endswith(f"Go on with: python -m {stack}train.run --resume {folder} --spawn")
    assert not any(rank.is_running() for rank in ranks)


def test_a_hang_of_all_ends_the_run(corpus, tmp_path):
    """Nobody is silent and nobody behind. In JAX nothing else would ever end it."""
    words = arguments(corpus, "--output", str(tmp_path / "hung"), *UPDATES, "--parallel.data", "2")
    ranks = launch(*(["-m", "tests.support.hanging", "jax", *words, *LIMITS] for _ in range(2)))
    (first, err), (second, more) = ended(ranks[0], 120), ended(ranks[1], 20)
    assert (first, second) == (SAID, SAID)
    assert "error: all 2 ranks have been at the figures of update 12 for 1" in err + more


@pytest.mark.parametrize(
    ("stack", "number"), [("torch", signal.SIGTERM), ("jax", signal.SIGTERM), ("torch", signal.SIGINT)]
)
def test_a_signal_saves_once(stack, number, corpus, tmp_path):
    """SIGINT as a terminal sends it, to all that it has started."""
    folder = tmp_path / "told"
    words = arguments(corpus, "--output", str(folder), "--train.updates", "4000", *TWO)
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # also if not where we run
    process = start(stack, *words, start_new_session=True, preexec_fn=heard)
    wait_for_updates(folder, 6, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert out.count("saved after update") == 1
    updates = [row["update"] for row in rows(folder) if "batch_hash" in row]
    assert CheckpointFolder(folder / "checkpoints").complete()[0].name == f"update-{updates[-1] + 1:08d}"
    line = out.splitlines()[-1].partition("go on with: ")[2]
    assert line == f"python -m {stack}train.run --resume {folder} --spawn"


def test_torchrun_is_in_the_line_that_goes_on(corpus, tmp_path):
    folder, port = tmp_path / "told", ["--master-port", str(free_port())]
    torchrun = ["torchrun", *port, "--nproc-per-node", "2", "-m", "torchtrain.run"]
    words = arguments(corpus, "--output", str(folder), "--train.updates", "4000", "--parallel.data", "2")
    process = subprocess.Popen([*torchrun, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_updates(folder, 4, process)
    ranks_of(process)[1].send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    line = out.splitlines()[-1].partition("go on with: ")[2]
    assert line == f"torchrun --nproc-per-node 2 -m torchtrain.run --resume {folder}"
    last = rows(folder)[-1]["update"]
    said = go_on(line.replace("torchrun", " ".join(["torchrun", *port]), 1), "--train.updates", str(last + 2))
    assert "finished" in said


def test_a_mistake_is_said_once(corpus, tmp_path):
    err = run("torch", *arguments(corpus, "--output", str(tmp_path / "x"), "--parallel.data", "3", "--spawn"), code=2)
    assert err.count("does not divide a micro-batch's rows") == 1
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stack", STACKS)
def test_a_full_disk_of_one_process_keeps_the_last_checkpoint(stack, corpus, tmp_path):
    """From some update on the second process can write no file: the save fails for all, and nothing is lost.

    Within seconds, though the first one's own part waits for the second's (orbax: for 20 minutes).
    """
    folder = tmp_path / "full"
    process = start(stack, *arguments(corpus, "--output", str(folder), "--train.updates", "4000", *TWO))
    wait_for_updates(folder, 5, process)
    resource.prlimit(ranks_of(process)[1].pid, resource.RLIMIT_FSIZE, (1000, 1000))
    code, err = ended(process, 60)
    assert code == 2
    assert "error: rank 1: OSError: [Errno 27] File too large" in err
    kept = CheckpointFolder(folder / "checkpoints")
    assert kept.complete()
    assert not list(kept.path.glob(".tmp-*"))
    for path in kept.complete():
        verify(path)


def test_processes_with_different_configs_are_refused(corpus, tmp_path):
    """As on two hosts with two command lines."""
    words = ["-m", "torchtrain.run", *arguments(corpus, f"--output={tmp_path / 'two'}")]
    runs = launch(words, [*words, "--train.batch_size", "8"])
    out = [process.communicate(timeout=120)[1] for process in runs]
    assert [process.returncode for process in runs] == [2, 2]
    assert "rank 1 has another config or command line than rank 0" in out[0]
    assert not (tmp_path / "two").exists()


def test_one_that_resumes_and_one_that_starts_are_refused(corpus, tmp_path):
    """Their settings are the same; they would train on from different states."""
    words = arguments(corpus, "--parallel.data", "2")
    (tmp_path / "config.json").write_text(parse(words, "", "").config.to_json())
    runs = launch(["-m", "torchtrain.run", "--resume", tmp_path], ["-m", "torchtrain.run", *words])
    out = [process.communicate(timeout=120)[1] for process in runs]
    assert [process.returncode for process in runs] == [2, 2]
    assert "rank 1 has another config or command line than rank 0" in out[0]


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
def test_twenty_kills_at_random_moments(stack, corpus, tmp_path):
    """One process of two is killed, anywhere from start-up to a save, and the run goes on: at the end, bit for bit."""
    count, latest = {"torch": ("4000", 7), "jax": ("1000", 11)}[stack]  # JAX compiles first
    updates = ("--train.updates", count, "--train.eval_interval", "100", "--checkpoint.interval", "20")
    run(stack, *arguments(corpus, "--output", str(tmp_path / "whole"), *updates, *TWO), within=900)
    rng, folder, slowest = random.Random(0), tmp_path / "killed", 0.0
    words = arguments(corpus, "--output", str(folder), *updates, *TWO)
    for _ in range(20):
        process = start(stack, *words)
        while len(ranks := ranks_of(process)) < 2 and process.poll() is None:
            time.sleep(0.1)
        time.sleep(rng.uniform(0, latest))
        ranks, victim = ranks_of(process), rng.randrange(2)
        assert len(ranks) == 2, "the run has ended: it takes more updates to kill it 20 times"
        ranks[victim].kill()
        killed = time.monotonic()
        code, err = ended(process, 120)
        slowest = max(slowest, time.monotonic() - killed)
        assert code == 1
        assert f"rank {victim} of 2 was killed by SIGKILL" in err.splitlines()[-1]
        _, begun, line = err.splitlines()[-1].partition(f" Go on with: python -m {stack}train.run ")
        words = shlex.split(line) if begun else words
    print(f"after update {rows(folder)[-1]['update']}", end=", ")
    run(stack, *words, within=900)
    print(f"the slowest end took {slowest:.1f} s")
    assert rows(folder) == rows(tmp_path / "whole")
    wanted, got = state(tmp_path / "whole"), state(folder)
    assert all((wanted[name] == got[name]).all() for name in wanted)

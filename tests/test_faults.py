"""Runs of several processes that go wrong: one is killed, stops, is told to end, or has a full disk."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from whole_runs import arguments, rows, run, start, state, wait_for_updates

from coretrain.checkpoint import CheckpointFolder, verify
from coretrain.spawn import free_port

STACKS = ("torch", "jax")
TWO = ("--parallel.data", "2", "--spawn")
UPDATES = ("--train.updates", "40")


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that `--spawn` started, by rank."""
    children = [child for child in psutil.Process(process.pid).children() if "RANK" in child.environ()]
    return sorted(children, key=lambda child: int(child.environ()["RANK"]))


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

    Measured 1.8e-7 at worst. Sharing that trains something else is planted in parity/test_zero.py and test_mesh.py.
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
    victim = random.Random(0).randrange(2)
    ranks[victim].kill()
    code, err = ended(process, 60)
    assert code == 1
    assert f"rank {victim} of 2 was killed by SIGKILL" in err.splitlines()[-1]
    assert f"--resume {folder} --spawn" in err.splitlines()[-1]
    assert not any(rank.is_running() for rank in ranks)
    run(stack, "--resume", folder, "--spawn")
    assert rows(folder) == rows(reference)
    wanted, got = state(reference), state(folder)
    assert all((wanted[name] == got[name]).all() for name in wanted)


def test_a_process_that_stops_is_named(corpus, tmp_path):
    folder = tmp_path / "stopped"
    process = start("torch", *arguments(corpus, "--output", str(folder), *UPDATES, *TWO, "--parallel.timeout", "12"))
    wait_for_updates(folder, 5, process)
    ranks = ranks_of(process)
    ranks[1].suspend()
    code, err = ended(process, 60)
    assert code == 1
    assert f"rank 1 (process {ranks[1].pid} on" in err
    assert not any(rank.is_running() for rank in ranks)


@pytest.mark.parametrize(
    ("stack", "number"), [("torch", signal.SIGTERM), ("jax", signal.SIGTERM), ("torch", signal.SIGINT)]
)
def test_a_signal_saves_once(stack, number, corpus, tmp_path):
    """SIGINT as a terminal sends it, to all that it has started."""
    folder = tmp_path / "told"
    words = arguments(corpus, "--output", str(folder), "--train.updates", "4000", *TWO)
    process = start(stack, *words, start_new_session=True)
    wait_for_updates(folder, 6, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert out.count("saved after update") == 1
    updates = [row["update"] for row in rows(folder) if "batch_hash" in row]
    assert CheckpointFolder(folder / "checkpoints").complete()[0].name == f"update-{updates[-1] + 1:08d}"


def test_a_mistake_is_said_once(corpus, tmp_path):
    err = run("torch", *arguments(corpus, "--output", str(tmp_path / "x"), "--parallel.data", "3", "--spawn"), code=2)
    assert err.count("does not divide a micro-batch's rows") == 1
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_a_full_disk_of_one_process_keeps_the_last_checkpoint(corpus, tmp_path):
    """From some update on the second process can write no file: the save fails for all, and nothing is lost."""
    folder = tmp_path / "full"
    process = start("torch", *arguments(corpus, "--output", str(folder), "--train.updates", "4000", *TWO))
    wait_for_updates(folder, 5, process)
    resource.prlimit(ranks_of(process)[1].pid, resource.RLIMIT_FSIZE, (1000, 1000))
    code, err = ended(process, 60)
    assert code == 2
    assert "rank 1: " in err
    assert "File too large" in err
    kept = CheckpointFolder(folder / "checkpoints")
    assert kept.complete()
    assert not list(kept.path.glob(".tmp-*"))
    for path in kept.complete():
        verify(path)


def test_processes_with_different_configs_are_refused(corpus, tmp_path):
    """As on two hosts with two command lines."""
    port = str(free_port())
    runs = []
    for rank, batch in enumerate(("4", "8")):
        facts = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {name: str(value) for name, value in facts.items()}
        words = arguments(corpus, f"--output={tmp_path / 'two'}", "--train.batch_size", batch)
        runs.append(start("torch", *words, env=environment))
    out = [process.communicate(timeout=120)[1] for process in runs]
    assert [process.returncode for process in runs] == [2, 2]
    assert "rank 1 has another config or command line than rank 0" in out[0]
    assert not (tmp_path / "two").exists()


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
        code, err = ended(process, 60)
        slowest = max(slowest, time.monotonic() - killed)
        assert code == 1
        assert f"rank {victim} of 2 was killed by SIGKILL" in err
        words = ["--resume", str(folder), "--spawn"] if (folder / "config.json").exists() else words
    print(f"after update {rows(folder)[-1]['update']}", end=", ")
    run(stack, *words, within=900)
    print(f"the slowest end took {slowest:.1f} s")
    assert rows(folder) == rows(tmp_path / "whole")
    wanted, got = state(tmp_path / "whole"), state(folder)
    assert all((wanted[name] == got[name]).all() for name in wanted)

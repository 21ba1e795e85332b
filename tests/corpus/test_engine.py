"""Tasks and their ledger: each is done once, whole, whoever is killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from coretrain.base.errors import UserError
from coretrain.corpus.engine import worker
from coretrain.corpus.engine.open import open_engine
from coretrain.corpus.engine.pool import Pool
from coretrain.corpus.engine.run import Here, Run
from coretrain.corpus.engine.slurm import Slurm, Submit
from coretrain.corpus.engine.task import Task, TaskError, entry_of, keyed, perform, result_of
from tests.support.commands import ROOT, environment
from tests.support.corpus_tasks import HERE
from tests.support.refusal import refused

FAULTS = (UserError, OSError, MemoryError, TaskError, ZeroDivisionError)


def tasks(calls, count=4, text="t"):
    first = [
        Task("first", n, f"{HERE}:doubled", {"text": f"{text}{n}", "calls": str(calls)}, (), (f"a/{n}.txt",))
        for n in range(count)
    ]
    second = Task(
        "second", 0, f"{HERE}:doubled", {"calls": str(calls)}, tuple(f"a/{n}.txt" for n in range(count)), ("b.txt",)
    )
    return first, second


def done(folder, calls, **more):
    folder.mkdir(exist_ok=True)
    run = Run(folder, Here(folder))
    first, second = tasks(calls, **more)
    run.stage("first", first)
    return run.stage("second", [second])[0]


def calls_of(path):
    return len(path.read_text()) if path.exists() else 0


def test_stages_are_done_once(tmp_path):
    calls = tmp_path / "calls"
    result = done(tmp_path / "out", calls)
    assert (tmp_path / "out/b.txt").read_text() == "t0t0t1t1t2t2t3t3" * 2
    assert result.facts == {"length": 16}
    assert calls_of(calls) == 5
    assert done(tmp_path / "out", calls) == result
    assert calls_of(calls) == 5


def test_other_arguments_void_what_depends_on_them_alone(tmp_path):
    calls = tmp_path / "calls"
    done(tmp_path / "out", calls)
    done(tmp_path / "out", calls, count=3)  # the first three are as they were
    assert calls_of(calls) == 6
    done(tmp_path / "out", calls, count=3, text="u")
    assert calls_of(calls) == 10


@pytest.mark.parametrize("harm", ["gone", "other", "cut", "entry", "entry-gone", "entry-of-another"])
def test_damage_of_a_half_result_is_noticed(tmp_path, harm):
    calls, out = tmp_path / "calls", tmp_path / "out"
    whole = done(out, calls)
    file, entry = out / "a/1.txt", out / "ledger/first/000001.json"
    if harm == "gone":
        file.unlink()
    elif harm == "other":
        file.write_text("T1t1")
    elif harm == "cut":
        file.write_text("t1t")
    elif harm == "entry":
        entry.write_bytes(entry.read_bytes()[:-9])
    elif harm == "entry-gone":
        entry.unlink()
    else:
        entry.write_bytes((out / "ledger/first/000002.json").read_bytes())
    assert done(out, calls).outputs == whole.outputs
    assert file.read_text() == "t1t1"
    assert calls_of(calls) == 6


def test_other_code_makes_finished_tasks_void(tmp_path):
    task = keyed(Task("s", 0, f"{HERE}:doubled", {"text": "t"}, (), ("a.txt",)), {}, "code 1")
    perform(tmp_path, task)
    assert result_of(tmp_path, task) is not None
    assert result_of(tmp_path, keyed(task, {}, "code 2")) is None


def test_other_inputs_make_finished_tasks_void():
    task = Task("s", 0, f"{HERE}:doubled", {}, ("a.txt",), ("b.txt",))
    assert keyed(task, {"a.txt": "1"}, "c").key != keyed(task, {"a.txt": "2"}, "c").key


@pytest.mark.parametrize("engine", [Here, lambda folder: Pool(folder, 1)])
@pytest.mark.parametrize("how", ["user", "disk", "memory", "bug"])
def test_what_a_task_raises_comes_through_and_nothing_half_written_stays(tmp_path, how, engine):
    task = Task("s", 0, f"{HERE}:fails", {"how": how}, (), ("a.txt",))
    with engine(tmp_path) as running, pytest.raises(FAULTS) as caught:
        Run(tmp_path, running).stage("s", [task])
    if how == "user":
        assert caught.value.code == "corpus/test"
        assert str(caught.value) == "the file x is no y: give another"
    elif how == "disk":
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/full/disk")
    elif how == "memory":
        assert isinstance(caught.value, MemoryError)
    else:
        assert isinstance(caught.value, TaskError | ZeroDivisionError)
        assert engine is Here or "ZeroDivisionError: a fault of ours" in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_killed_process_costs_its_task_one_more_try(tmp_path):
    task = Task("s", 0, f"{HERE}:dies", {"times": 1, "calls": str(tmp_path / "calls")}, (), ("a.txt",))
    others = [Task("s", n, f"{HERE}:doubled", {"text": "t"}, (), (f"{n}.txt",)) for n in (1, 2)]
    with Pool(tmp_path, 2) as pool:
        Run(tmp_path, pool).stage("s", [task, *others])
    assert (tmp_path / "a.txt").read_text() == "at last" * 2
    assert calls_of(tmp_path / "calls") == 2


def test_a_task_that_is_killed_again_is_named(tmp_path):
    task = Task("map", 7, f"{HERE}:dies", {"times": 9, "calls": str(tmp_path / "calls")}, (), ("a.txt",))
    with Pool(tmp_path, 1) as pool, refused("corpus/worker-killed", "task 7 of stage map", "signal 9", "memory"):
        Run(tmp_path, pool).stage("map", [task])
    assert calls_of(tmp_path / "calls") == 2


WAITING = f"""
import sys
from pathlib import Path
from coretrain.corpus.engine.pool import Pool
from coretrain.corpus.engine.task import Task
folder = Path(sys.argv[1])
tasks = [Task("s", n, "{HERE}:waits", {{"pid": str(folder / f"pid-{{n}}")}}, (), (f"{{n}}.txt",)) for n in range(2)]
with Pool(folder, 2) as pool:
    list(pool.run(tasks))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_command(tmp_path, how):
    """Neither workers nor what they are forked from, however it ends; and Ctrl-C, which all get, is told by one."""
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(), start_new_session=True) as process:
        while len(pids := [path.read_text() for path in tmp_path.glob("pid-*")]) < 2 or "" in pids:
            time.sleep(0.02)
            assert process.poll() is None
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        since = time.monotonic()
        said = process.stderr.read().decode()  # until all of them are gone
    assert said.count("Traceback") == (how == signal.SIGINT), said
    assert time.monotonic() < since + 30  # their tasks would have taken a minute


def test_an_entry_is_json_and_names_the_outputs(tmp_path):
    done(tmp_path / "out", tmp_path / "calls")
    first, _ = tasks(tmp_path / "calls")
    raw = json.loads(entry_of(tmp_path / "out", first[2]).read_text())
    assert set(raw) == {"key", "outputs", "facts", "seconds"}
    assert list(raw["outputs"]) == ["a/2.txt"]


SBATCH = """#!/bin/bash
# Stands in for Slurm: carries out what it is given at once, each job of an array with its number.
if [ "$1" = --parsable ]; then
    last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$2")
    for job in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$job bash "$2" || exit 1; done
    echo 7
else
    [ "$1" = --dependency=afterok:7 ] || exit 3
    while [ "$1" != --wrap ]; do shift; done
    bash -c "$2"
fi
"""


def test_slurm_has_a_script_for_each_stage_and_goes_on(tmp_path, monkeypatch):
    """A stage is written as an array; with its tasks done, the next run of the same goes on behind it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    bin_, out = tmp_path / "bin", tmp_path / "out"
    bin_.mkdir()
    (bin_ / "sbatch").write_text(SBATCH)
    (bin_ / "sbatch").chmod(0o755)
    first, second = tasks(tmp_path / "calls", 3)
    out.mkdir()
    for stage in range(2):
        with Slurm(out, 2, ["mv", str(out / "slurm/go.sh"), str(tmp_path / "went-on")]) as engine:
            run = Run(out, engine)
            if not stage:
                with pytest.raises(Submit, match="first: 3 tasks wait as an array of 3 jobs"):
                    run.stage("first", first)
                script = (out / "slurm/first.sh").read_text()
                assert "#SBATCH --array=0-2%2\n" in script
                environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}"}
                subprocess.run(["bash", out / "slurm/go.sh"], check=False, env=environment, timeout=60)
                assert (tmp_path / "went-on").exists()
                assert calls_of(tmp_path / "calls") == 3
            else:
                assert not (out / "slurm/go.sh").exists()
                run.stage("first", first)
                run.stage("second", [second])  # of one task: done here
    assert (out / "b.txt").read_text() == "t0t0t1t1t2t2" * 2
    assert calls_of(tmp_path / "calls") == 4


def test_large_stages_have_several_tasks_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr("coretrain.corpus.engine.slurm.MOST_JOBS", 2)
    first, _ = tasks(tmp_path / "calls", 5)
    with Slurm(tmp_path, 0, ["true"]) as engine, pytest.raises(Submit, match="5 tasks wait as an array of 2 jobs"):
        Run(tmp_path, engine).stage("first", first)
    script = (tmp_path / "slurm/first.sh").read_text()
    assert "#SBATCH --array=0-1\n" in script
    monkeypatch.setattr("sys.argv", ["worker", str(tmp_path), str(tmp_path / "slurm/first.jsonl"), "3", "1"])
    assert worker.main() == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["3.txt", "4.txt"]
    assert worker.main() == 0
    assert calls_of(tmp_path / "calls") == 2


@pytest.mark.slow
def test_ray_gives_what_the_pool_gives(tmp_path):
    """On a cluster that this test starts on this machine; Ray is the extra `ray`."""
    pytest.importorskip("ray")
    (tmp_path / "out").mkdir()
    first, second = tasks(tmp_path / "calls")
    killed = Task("first", 9, f"{HERE}:dies", {"times": 1, "calls": str(tmp_path / "kills")}, (), ("killed.txt",))
    wrong = Task("third", 0, f"{HERE}:fails", {"how": "user"}, (), ("c.txt",))
    with open_engine("ray://local", 2, [])(tmp_path / "out") as engine:
        run = Run(tmp_path / "out", engine)
        run.stage("first", [*first, killed])
        run.stage("second", [second])
        with refused("corpus/test"):
            run.stage("third", [wrong])
    done(tmp_path / "pool", tmp_path / "calls2")
    assert (tmp_path / "out/b.txt").read_bytes() == (tmp_path / "pool/b.txt").read_bytes()
    assert calls_of(tmp_path / "kills") == 2


def test_ray_that_isnt_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused("corpus/ray-missing", "twintrain[ray]"), open_engine("ray://head:10001", 2, [])(tmp_path):
        pass

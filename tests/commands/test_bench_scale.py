"""bench/scale.py at tiny shapes: what is counted agrees with theory, and times are put together rightly."""

from __future__ import annotations

import importlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.refusal import refused

SMALL = {"model.layers": 2, "model.width": 64, "model.heads": 2, "model.vocab": 512, "model.tied": "true"}


def loaded(name: str):
    return importlib.import_module(f"bench.{name}")


@pytest.fixture(scope="module")
def bench():
    return loaded("scale")


def measured(tmp_path: Path, part: str, *options: str, **fields: object) -> list[dict]:
    path = tmp_path / "out" / "scale.json"
    given = [word for key, value in fields.items() for word in (f"--{key.replace('__', '.')}", str(value))]
    command = [sys.executable, "-m", "bench.scale", part, "--json", str(path), "--markdown"]
    done = subprocess.run([*command, *options, *given], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert list(found) == [part]
    rows = found[part]["rows"]
    assert len(done.stdout.splitlines()) == 2 + len(rows)
    return rows


SHAPE = {key.replace(".", "__"): value for key, value in SMALL.items()}


@pytest.mark.whole
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts a connection's bytes")
def test_two_processes_send_what_theory_says(tmp_path):
    (row,) = measured(tmp_path, "bytes", "--shape", "tiny", "--only", "torch", "data", **SHAPE)
    assert row["theory"] == sum(row["theory_by_kind"].values()) > 5e5
    assert len(row["by_process"]) == 2
    # 1.003 to 1.031: the words of the processes' own table; it would catch a sum for each micro-batch, which is 2
    assert row["ratio"] == pytest.approx(1, abs=0.1)


@pytest.mark.whole
@pytest.mark.parametrize("axis", ["data", "context"])
def test_the_program_sends_what_theory_says(tmp_path, axis):
    (row,) = measured(tmp_path, "bytes", "--shape", "tiny", "--only", "jax", axis, **SHAPE)
    assert row["loops_without_count"] == 0
    # floor 1.0003: loss, norm and count of targets; it would catch a collective of one channel that isn't
    # counted, and a tied embedding whose gradient is summed over the devices for each of its uses
    assert row["ratio"] == pytest.approx(1, abs=0.01)


@pytest.mark.whole
def test_two_processes_in_turns_with_one(tmp_path):
    rows = measured(tmp_path, "ratio", "--rounds", "2", "--shape", "tiny", "--only", "torch", **SHAPE)
    assert [row["name"] for row in rows] == ["torch, 1 process, 1 thread", "torch, 1 process, 2 threads", "torch, data"]
    assert rows[0]["to_one_thread"] == rows[1]["to_as_many_threads"] == 1
    for row in rows:
        assert len(row["update_seconds"]) == 2
        assert row["tokens_per_second"] > 0


@pytest.mark.whole
def test_the_loop_around_the_stack(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for n in range(50):  # documents, some of which validation takes
        (text / f"{n}.txt").write_text(f"{n} quick brown foxes jump over {n + 1} lazy dogs\n" * 40)
    data = {"data__source": text, "data__tokenizer": "bytes", "data__cache": tmp_path / "cache"}
    shape = {key: value for key, value in SHAPE.items() if key != "model__vocab"}
    options = ("--updates", "5", "--only", "torch", "0")
    (row,) = measured(tmp_path, "overhead", *options, model__context=32, **data, **shape)
    assert row["updates"] == 5
    assert 0 < row["data_share"] < row["outside_share"] < 1


def test_ratios_are_taken_within_a_round(bench):
    seconds = {"one": [1.0, 10.0, 1.0], "wide": [1.0, 10.0, 1.0], "two": [0.5, 5.0, 0.5]}
    rows = bench.ratio_rows("torch", {"train.batch_size": 8, "model.context": 16}, seconds)
    assert [row["to_one_thread"] for row in rows] == [1, 1, 2]
    assert rows[0]["tokens_per_second"] == 8 * 16


@pytest.mark.whole
def test_a_process_that_fails_is_said(bench):
    children = bench.Children({"do": "train", "stack": "torch", "fields": {"model.layers": 0}})
    with refused("bench/measurement-failed"):
        children.answers()
    children.close()


def test_fields_of_the_command_line(bench):
    assert bench.given_fields(["--model.layers", "2"]) == {"model.layers": "2"}
    with refused("bench/bad-field-arguments"):
        bench.given_fields(["--layers", "2"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts a connection's bytes")
def test_bytes_of_this_process_alone():
    worker = loaded("scale_worker")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as here:
        there, _ = server.accept()
        with there:
            before = worker.sent_bytes()
            here.sendall(bytes(50_000))
            left = 50_000
            while left:
                left -= len(there.recv(left))
            here.setblocking(False)
            assert worker.sent_bytes() - before == 50_000

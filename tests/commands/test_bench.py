"""bench/speed.py at a tiny shape: rows, fields, and figures that can be true."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def bench():
    return importlib.import_module("bench.speed")


@pytest.mark.whole
def test_a_tiny_shape(tmp_path, bench):
    path, names = tmp_path / "bench.json", ["torch-f32", "jax-f32", "peer-f32"]
    shape = {"layers": 1, "width": 64, "vocab": 300, "batch": 2, "context": 32}
    options = [part for key, value in shape.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "bench.speed", *options, "--updates", "4", "--only", *names, "--json", str(path)]
    done = subprocess.run([*command, "--markdown"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())

    assert result["shape"] == shape
    parameters = 12 * 64**2 + 300 * 64
    assert result["flops_per_token"] == 6 * parameters + 12 * 64 * 32
    assert [row["name"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert row["status"] == "ok"
        assert len(row["update_seconds"]) == 2, "4 updates in turns of 2"
        assert 0 < row["share_of_peak"] < 1
        assert row["gflops"] == pytest.approx(row["tokens_per_second"] * result["flops_per_token"] / 1e9)
        assert 1e8 < row["peak_memory_bytes"] < 1e10
        assert 0.01 < row["ratio_to_peer"] < 100
    assert result["rows"][2]["ratio_to_peer"] == 1
    assert {"torch float32", "jax float32"} == set(result["peaks"])
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(names)
    assert {line.count("|") for line in table} == {len(bench.HEADINGS) + 1}


def test_no_bf16_rows_without_bf16_units(bench):
    peaks = {"torch float32": {"gflops": 180.0}, "torch bfloat16": {"gflops": 0.3}}
    contender = bench.CONTENDERS["torch-bf16"]
    assert bench.obstacle(contender, peaks) == "not run: this CPU has no bf16 units (0.3 GFLOP/s)"
    peaks["torch bfloat16"]["gflops"] = 900.0
    assert bench.obstacle(contender, peaks) is None
    assert bench.obstacle(bench.CONTENDERS["torch-f32"], peaks) is None


def test_the_peer_is_optional(bench, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.obstacle(bench.CONTENDERS["peer-f32"], {}) == "not run: pip install 'twintrain[bench]'"


@pytest.mark.whole
def test_a_child_that_fails_is_a_row(bench):
    child = bench.Child("bench.speed", {"framework": "torch", "dtype": "no such dtype", "size": 8})
    assert child.turn(1) == []
    assert "no such dtype" in child.error
    child.close()

"""bench/floors.py: sessions joined, and the table of their figures."""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def floors():
    return importlib.import_module("bench.floors")


def session(failures=(), **errors):
    gates = [
        {"name": name, "cap": 1.0 if name != "exact" else 0, "error": error, "where": str(error)}
        for name, error in errors.items()
    ]
    return {"status": "ok", "machine": {}, "versions": {}, "failures": list(failures), "seconds": 1.0, "gates": gates}


x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the settings are x86's")


@x86
def test_the_table_has_the_worst_of_all(floors):
    measured = {"AVX2": session(a=0.5, exact=0), "as it is": session(a=0.25, exact=0, b=2.0), "SSE4.2": {"status": "x"}}
    assert floors.table(measured) == [
        ("gate", "as it is", "AVX2", "cap", "margin"),
        ("a", "0.25", "0.5", "1", "2.0"),
        ("exact", "0", "0", "0", "equal"),
        ("b", "2", "", "1", "ABOVE"),
    ]
    assert floors.table({"AVX2": session(a=math.nan), "as it is": session(a=0.5)})[1][-1] == "ABOVE"


def test_pieces_are_joined(floors):
    both = floors.joined(session(["x"], a=0.5, b=0.1), session(["x", "y"], a=0.25, b=math.nan, c=0.3))
    assert {gate["name"]: gate["error"] for gate in both["gates"]} == pytest.approx(
        {"a": 0.5, "b": math.nan, "c": 0.3}, nan_ok=True
    )
    assert both["failures"] == ["x", "y"]
    assert floors.joined(both, {"status": "failed"}) == {"status": "failed"}


@pytest.mark.whole
def test_a_file_that_is_no_table_is_left_alone(floors, tmp_path):
    path = tmp_path / "floors.json"
    path.write_text("[1]")
    done = subprocess.run(
        [sys.executable, "-m", "bench.floors", "--json", str(path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == "[1]"


@x86
@pytest.mark.whole
def test_a_session_that_is_held_down(tmp_path):
    """One small test under SSE4.2 or what this processor makes of the names; the user's own limits don't reach it."""
    path = tmp_path / "floors.json"
    test = "parity/ladder/test_rounding.py::test_norms_where_the_mean_is_large"
    command = [sys.executable, "-m", "bench.floors", "--only", "SSE4.2", "--tests", test, "--json", str(path)]
    mine = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([*command, "--markdown"], capture_output=True, text=True, timeout=900, env=mine)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())["SSE4.2"]
    assert found["machine"]["limits"]["ATEN_CPU_CAPABILITY"] == "default"
    assert [gate["name"] for gate in found["gates"]] == ["norms of mean >> std, float32"]
    assert done.stdout.startswith("| gate | SSE4.2 | cap | margin |")

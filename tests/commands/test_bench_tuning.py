"""bench/tuning.py at a tiny shape: what is measured, what it is compared with, and what it says of the rest."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from tests.support.refusal import refused

SMALL = {"layers": 1, "width": 64, "heads": 2, "kv_heads": 1, "mlp_width": 128, "vocab": 300}


@pytest.fixture(scope="module")
def bench():
    return importlib.import_module("bench.tuning")


@pytest.mark.whole
@pytest.mark.parametrize(
    ("part", "word", "names"),
    [
        ("generation", "transformers", ["transformers", "transformers, static cache"]),
        ("training", "JAX, LoRA", ["JAX, LoRA"]),
    ],
)
def test_rows_of_a_part(part, word, names, tmp_path):
    path = tmp_path / "tuning.json"
    fields = [text for key, value in SMALL.items() for text in (f"--model.{key}", str(value))]
    command = [
        sys.executable,
        "-m",
        "bench.tuning",
        part,
        "--rounds",
        "2",
        "--only",
        word,
        "--json",
        str(path),
        *fields,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["rows"]] == names
    for row in result["rows"]:
        assert len(row["seconds"]) == 2
        assert row["tokens_per_second"] > 0
        assert 1e8 < row["peak_memory_bytes"] < 1e10
        assert ("ratio" in row) == (names[0] == "transformers"), "a ratio needs its peer in the same rounds"
    assert len(done.stdout.splitlines()) == 2 + len(names)


def test_every_row_has_a_peer_in_its_part(bench):
    for contender in bench.CONTENDERS.values():
        rival = bench.CONTENDERS[contender.rival]
        assert (rival.part, rival.stack, rival.quantize) == (contender.part, "peer", contender.quantize)


def test_what_cannot_run_says_what_it_needs(bench, monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    task = {"preset": "smollm2-135m", "fields": {}}
    rows = bench.measured("training", task, ["PEFT", "bitsandbytes"], 1)["rows"]
    assert [row["status"] for row in rows] == ["not run: pip install transformers peft bitsandbytes"]
    with refused("bench/only-matches-nothing", "training"):
        bench.measured("training", task, ["nothing"], 1)

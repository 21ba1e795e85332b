"""scripts/twins.py: what it says of two runs, and its picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.refusal import refused
from twintrain.twins import sentences

pytestmark = pytest.mark.whole

SCRIPT = ROOT / "scripts" / "twins.py"


def make_run(folder, losses, validation):
    folder.mkdir()
    rows = [
        {"update": n, "loss": loss, "grad_norm": 1.0, "lr": 1e-3, "tokens": n, "batch_hash": str(n), "seconds": 0.1}
        for n, loss in enumerate(losses)
    ]
    rows.append({"update": len(losses), "val_loss": validation, "bits_per_byte": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def call(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)


def test_how_far_apart_two_runs_are(tmp_path):
    a = make_run(tmp_path / "a", [8.0, 7.0, None, 6.0, 5.0], 5.0)
    b = make_run(tmp_path / "b", [8.0, 7.0 + 5e-7, 6.5, 6.0 + 5e-5, 5.25], 4.9)
    done = call(a, b, tmp_path / "twins.png")
    assert done.returncode == 0, done.stderr
    assert "4 updates; batches with other token ids: 0; first losses 8.000000 and 8.000000" in done.stdout
    assert "first 2 losses are within 1e-06, the first 3 within 0.0001; 1 are equal" in done.stdout
    assert "the largest difference is 0.2500" in done.stdout
    assert "Validation after 5 updates: 5.0000 and 4.9000, 2.04% apart" in done.stdout
    assert (tmp_path / "twins.png").read_bytes().startswith(b"\x89PNG")


def test_a_hole_is_said_and_damage_refused(tmp_path):
    a, b = (make_run(tmp_path / name, [8.0, 7.0, 6.5, 6.0], 5.0) for name in "ab")
    path = tmp_path / "b" / "metrics.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:1] + whole[2:]))
    text = sentences([Path(a), Path(b)])
    assert text.startswith(f"warning: {path} lacks 1 of 4 updates (1)")
    assert "\n3 updates;" in text
    path.write_text("".join([whole[0].replace("loss", "los"), *whole[1:]]))
    with refused("journal/line-damaged", str(path), "line 1"):
        sentences([Path(a), Path(b)])


def test_what_is_no_run_is_refused(tmp_path):
    done = call(tmp_path, tmp_path, tmp_path / "twins.png")
    assert done.returncode == 2
    assert "name the folder of a run" in done.stderr
    assert not (tmp_path / "twins.png").exists()

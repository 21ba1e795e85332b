"""scripts/twins.py: what it says of two runs, and its picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coretrain.config.load import load_config
from coretrain.journal.segments import Segment, begin_segment
from tests.support.commands import ROOT
from tests.support.refusal import refused
from twintrain.twins import labels, sentences, title

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


def test_runs_are_called_by_what_tells_them_apart(tmp_path):
    def run(name, stack, **fields):
        folder = tmp_path / name
        make_run(folder, [8.0], 5.0)
        pairs = [(key.replace("__", "."), value) for key, value in fields.items()]
        (folder / "config.json").write_text(load_config("tiny", pairs).with_vocab(4096).to_json())
        begin_segment(folder, Segment(0, stack, "cpu"))
        return folder

    one, other = run("tiny-20261130-120000", "torch"), run("tiny-20261130-120500", "jax")
    assert labels([one, other]) == ["PyTorch", "JAX"]
    assert title(["PyTorch", "JAX"], [one, other]) == "PyTorch and JAX: the same config"
    named = run("mine", "jax"), run("yours", "jax")
    assert labels(named) == ["mine", "yours"]
    quick = run("tiny-20261130-121000-2", "jax", optimizer__lr="0.01")
    assert labels([other, quick]) == ["optimizer.lr = 0.0015", "optimizer.lr = 0.01"]
    assert labels([one, quick]) == ["PyTorch", "JAX"]
    assert title(["a", "b"], [one, quick]) == "a and b: other optimizer.lr"
    assert title(labels([other, quick]), [other, quick]) == "optimizer.lr = 0.0015 and optimizer.lr = 0.01"
    again = run("tiny-20261130-130000", "jax")
    assert labels([other, again]) == ["tiny-20261130-120500", "tiny-20261130-130000"], "nothing else tells them apart"
    (tmp_path / "elsewhere").mkdir()
    assert labels([named[0], run("elsewhere/mine", "jax")]) == [f"{tmp_path.name}/mine", "elsewhere/mine"]


def call(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.whole
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


@pytest.mark.whole
def test_what_is_no_run_is_refused(tmp_path):
    done = call(tmp_path, tmp_path, tmp_path / "twins.png")
    assert done.returncode == 2
    assert "name the folder of a run" in done.stderr
    assert not (tmp_path / "twins.png").exists()

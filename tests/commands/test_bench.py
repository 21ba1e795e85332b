"""`twintrain bench` at a tiny shape: rows, ratios with their spread, and what it says of what it can't run."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from tests.support.commands import ROOT, environment
from tests.support.refusal import refused
from twintrain.bench import contenders, rounds, table
from twintrain.bench.contenders import Contender, Shape
from twintrain.bench.turns import Child
from twintrain.command import main

TINY = {"layers": 1, "width": 64, "vocab": 300, "batch": 2, "context": 32}
NANOGPT = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int = 1
    vocab_size: int = 1
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 1
    dropout: float = 0.5
    bias: bool = False

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert (config.dropout, config.bias) == (0.0, True)
        self.table = nn.Embedding(config.vocab_size, config.n_embd)

    def forward(self, idx, targets=None):
        logits = self.table(idx) @ self.table.weight.T
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
"""
"""A checkout's public names, with a model that isn't ours."""


def bench(*words: object) -> subprocess.CompletedProcess[str]:
    sizes = {name: value for name, value in TINY.items() if name != "batch" or "generation" not in words}
    size = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "twintrain", "bench", *size, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=300)


@pytest.mark.whole
def test_a_tiny_training(tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    page, path, names = tmp_path / "b.md", tmp_path / "b.json", ["torch-f32", "jax-f32", "nanogpt-f32"]
    files = ("--markdown", page, "--json", path, "--nanogpt", tmp_path)
    done = bench("--rounds", 3, "--only", *names, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert result["shape"] == TINY | {"prompt": 16, "new": 16}
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == names
    parameters = 12 * 64**2 + 13 * 64 + 2 * 64 + (300 + 32) * 64
    for name, row in rows.items():
        assert row["status"] == "ok"
        assert len(row["seconds"]) == 3
        assert 0 < row["share_of_peak"] < 1
        assert 1e8 < row["peak_memory_bytes"] < 1e10
        assert row["parameters"] == (300 * 64 if name == "nanogpt-f32" else parameters)
    assert rows["torch-f32"]["first_loss"] == pytest.approx(rows["jax-f32"]["first_loss"], abs=1e-4)
    for name in ("torch-f32", "jax-f32"):
        (found,) = rows[name]["ratios"].values()
        times = zip(rows["nanogpt-f32"]["seconds"], rows[name]["seconds"], strict=True)
        each = sorted(other / own for other, own in times)
        assert [found[key] for key in ("lowest", "median", "highest")] == each
    assert rows["nanogpt-f32"]["ratios"] == {}
    assert {"torch float32", "jax float32"} == set(result["peaks"])
    assert f"nanoGPT: 19,200 parameters for our {parameters:,}" in result["unlike"]
    assert "nanogpt model.py " in page.read_text()
    assert len([line for line in page.read_text().splitlines() if line.startswith("|")]) == 2 + len(names)
    assert "nanoGPT" in done.stdout


@pytest.mark.whole
def test_a_tiny_generation(tmp_path):
    path = tmp_path / "b.json"
    done = bench("--what", "generation", "--rounds", 1, "--only", "torch-f32", "transformers-f32", "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, peer = json.loads(path.read_text())["rows"]
    assert ours["parameters"] == peer["parameters"], "the same model"
    assert ours["ratios"].keys() == {"transformers-f32"}
    for row in (ours, peer):
        assert row["tokens_per_second"] == pytest.approx(16 / row["seconds"][0])


def of(name: str, speed: float, memory: float = 2**30, **more: object) -> dict[str, object]:
    one = contenders.contenders("training")[name]
    row = {"name": name, "label": one.label, "maker": one.maker, "dtype": one.dtype, "status": "ok", "ratios": {}}
    row |= {"tokens_per_second": speed, "share_of_peak": 0.5, "peak_memory_bytes": memory, "memory_of": "host"}
    return row | more


def result() -> dict[str, object]:
    ratios = {
        peer: {"median": middle, "lowest": middle - 0.1, "highest": middle + 0.1}
        for peer, middle in (("transformers-f32", 1.5), ("transformers-f32-compiled", 1.3), ("nanogpt-f32", 1.72))
    } | {"litgpt-f32-compiled": {"median": 10.0, "lowest": 9.5, "highest": 10.5}}
    rows = [of("torch-f32", 1288.4, ratios=ratios), of("transformers-f32", 800), of("transformers-f32-compiled", 990)]
    rows += [of("nanogpt-f32", 749), of("litgpt-f32-compiled", 100), of("jax-bf16", 0, status="why not")]
    facts = {"cpu": "A Processor", "cores": 2, "system": "Linux x86_64", "python": "3.11", "torch": "2.13.0"}
    found = {
        "part": "training",
        "machine": facts,
        "shape": TINY,
        "rounds": 6,
        "steps_of_a_turn": 2,
        "rows": rows,
        "load_before": 9.25,
    }
    return (
        found
        | {"peaks": {"torch float32": {"gflops": 324.0}}, "not_run": ["jax-bf16 not run: why not"]}
        | {"unlike": ["litgpt has rotary positions"]}
    )


def test_the_table_takes_each_peers_fastest_form():
    text = table.markdown(result())
    assert (
        "| twintrain, torch | float32 | 1,288 | 50% | 1.00 GiB | 1.30 (1.20 to 1.40) | 1.72 (1.62 to 1.82) "
        "| 10.00 (9.50 to 10.50) |\n"
    ) in text
    assert "| transformers, compiled | float32 | 990 | 50% | 1.00 GiB |  |  |  |\n" in text
    for line in ("A Processor, 2 cores, Linux x86_64; python 3.11, torch 2.13.0.", "- jax-bf16 not run: why not."):
        assert line in text.splitlines()
    assert "jax-bf16 |" not in text
    assert "its load was 9.2." in text
    assert "load" not in table.markdown(result() | {"load_before": 0.5})


@pytest.mark.parametrize("terminal", [True, False])
def test_it_fits_a_terminal(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80, highlight=False)
    table.show(result(), console)
    out = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    figures = [line for line in out.splitlines() if "1,288" in line or "1.20-1.40" in line]
    assert len(figures) == 2, out
    assert "\n  transformers, compiled  " in out, "no label is broken"
    assert "1.30" in figures[0], "no cell is cut"
    assert "10.00" in figures[0]
    assert "9.50-10.50" in figures[1]
    assert "\N{HORIZONTAL ELLIPSIS}" not in out


def test_no_bf16_rows_without_bf16_units():
    peaks = {"torch float32": {"gflops": 180.0}, "torch bfloat16": {"gflops": 0.3}}
    ours = Contender("torch", "bfloat16")
    assert contenders.obstacle(ours, peaks, None) == "this CPU has no bf16 units (0.3 GFLOP/s)"
    peaks["torch bfloat16"]["gflops"] = 900.0
    assert contenders.obstacle(ours, peaks, None) is None
    assert contenders.obstacle(Contender("torch", "float32"), peaks, None) is None


def test_what_is_missing_is_a_sentence(monkeypatch, tmp_path):
    """Of each peer one, however many forms it has; nanoGPT is where its folder is."""
    monkeypatch.setattr(contenders, "_installed", lambda package: False)
    monkeypatch.setattr(contenders.shutil, "which", lambda name: None)
    monkeypatch.setattr(contenders, "_accelerated", lambda: False)
    found = []
    for one in contenders.contenders("training").values():
        why = contenders.obstacle(one, {"torch float32": {"gflops": 1}, "torch bfloat16": {"gflops": 1}}, tmp_path)
        if one.peer:
            found.append(rounds.Row(one.name, one.label, one.maker, one.dtype, one.compiled, why or "ok"))
    assert rounds.not_run(found) == [
        "transformers not run: pip install 'twintrain[bench]'",
        "nanogpt-f32-compiled, nanogpt-bf16-compiled not run: no C++ compiler is installed",
        "litgpt not run: pip install litgpt",
    ]


def test_words_choose_contenders():
    every = contenders.contenders("training")
    assert list(contenders.chosen("training", None)) == list(every)
    assert list(contenders.chosen("training", ["jax", "torch-f32"])) == ["torch-f32", "jax-f32", "jax-bf16"]
    compiled = contenders.chosen("training", ["compiled"])
    assert [name for name in every if name.endswith("compiled")] == list(compiled)
    assert not any(one.compiled for one in contenders.contenders("generation").values())


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        ("--only torhc", "bench/only-means-nothing", ["torhc", "torch-f32"]),
        ("--what generation --batch 4", "bench/batch-without-training", ["--batch"]),
        ("--what generation --only compiled", "bench/only-means-nothing", ["generation"]),
        ("--nanogpt nowhere", "bench/nanogpt-not-there", ["nowhere"]),
        ("--nanogpt here --only torch", "bench/nanogpt-left-out", []),
        ("--json nowhere/b.json", "bench/target-not-a-file", ["--json", "nowhere"]),
        ("--markdown here", "bench/target-not-a-file", ["--markdown here", "folder"]),
        ("--markdown b --json ./b", "bench/one-file-for-two", ["b"]),
        ("--rounds 0", "command/bad-arguments", ["--rounds"]),
        ("--context 1", "command/bad-arguments", ["--context"]),
        ("--only nanogpt-f32", "bench/nothing-to-run", ["nanogpt-f32", "--nanogpt FOLDER"]),
    ],
)
def test_one_sentence(words, code, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "measured_peak", lambda *_: {"size": 8, "gflops": 1.0})
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.py").write_text("")
    with refused(code, *names):
        main(["bench", *words.split()])
    assert [path.name for path in tmp_path.iterdir()] == ["here"], "nothing is written"


def test_heads_divide_the_width():
    assert [Shape(width=width).heads for width in (384, 64, 100, 32)] == [6, 1, 1, 1]
    assert Shape(width=100).config().model.heads == 1


@pytest.mark.whole
def test_a_child_that_fails_is_a_row():
    child = Child("twintrain.bench.contest", {"framework": "torch", "dtype": "no such dtype", "size": 8})
    assert child.turn(1) == []
    assert "no such dtype" in child.error
    child.close()

"""Which stacks trained a run, as its report says."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from coretrain.base.machine import made_with
from coretrain.journal.journal import Journal
from coretrain.journal.segments import SEGMENTS, Segment, begin_segment, read_segments
from tests.support.journals import config, journal, printed, train


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        ([(0, "torch")], "trained in PyTorch on cpu."),
        ([(0, "torch"), (4, "torch")], "trained in PyTorch on cpu."),
        (
            [(0, "torch"), (4, "jax")],
            "trained in PyTorch on cpu (updates 1 to 4), then in JAX on cpu (updates 5 to 8).",
        ),
        ([(0, "torch"), (7, "jax")], "trained in PyTorch on cpu (updates 1 to 7), then in JAX on cpu (update 8)."),
        (
            [(0, "torch"), (6, "jax"), (4, "jax")],
            "trained in PyTorch on cpu (updates 1 to 4), then in JAX on cpu (updates 5 to 8).",
        ),
        ([(0, "torch"), (4, "jax"), (0, "jax")], "trained in JAX on cpu."),
        ([(4, "jax")], "in a stack that was not recorded (updates 1 to 4), then in JAX on cpu (updates 5 to 8)."),
    ],
)
def test_the_report_names_every_stack_that_trained_the_run(tmp_path, begun, said):
    for start, stack in begun:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        run = config(journal__tensorboard="false")
        (folder / "config.json").write_text(run.to_json())
        book = Journal(folder, run, stack, start, "cpu", Console(file=io.StringIO(), width=200, highlight=False))
        with book:
            train(book, start, 8)
            book.close("finished")
    assert said in (tmp_path / "run" / "report.html").read_text()
    told = "trained" in printed(book).partition("result")[2].partition("training")[0]
    assert told == (" PyTorch" in said and " JAX" in said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '[{"first": 0}]',
        '[{"first": "x", "stack": "a", "device": ""}]',
        "[" * 9999,
        '[{"first": 2, "stack": "torch", "device": "cpu"}, {"first": 0, "stack": "jax", "device": "cpu"}]',
        '[{"first": 1e999, "stack": "a", "device": ""}]',
    ],
)
def test_a_report_does_without_a_damaged_list_of_stacks(tmp_path, text):
    with journal(tmp_path) as book:
        train(book, 0, 4)
        (tmp_path / "stacks.json").write_text(text)
        book.close("finished")
    assert "trained in PyTorch." in (tmp_path / "report.html").read_text()


def test_segments_in_another_order_are_no_segments(tmp_path):
    """What was made when can't be told from them; a run that goes on keeps none of them."""
    begin_segment(tmp_path, Segment(0, "torch", "cpu"))
    begin_segment(tmp_path, Segment(4, "jax", "cpu"))
    found = read_segments(tmp_path)
    assert [segment.first for segment in found] == [0, 4]
    rows = json.loads((tmp_path / SEGMENTS).read_text())
    (tmp_path / SEGMENTS).write_text(json.dumps(rows[::-1]))
    assert read_segments(tmp_path) == []


def test_what_the_bits_depend_on_is_kept(tmp_path, monkeypatch):
    """Of a run of an earlier version nothing is known."""
    (tmp_path / SEGMENTS).write_text('[{"first": 0, "stack": "torch", "device": "cpu"}]')
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    here = made_with(processes=2)
    begin_segment(tmp_path, Segment(4, "jax", "cpu", here))
    assert [one.made_with for one in read_segments(tmp_path)] == [{}, here]
    assert (here["OMP_NUM_THREADS"], here["processes"], here["numpy"]) == ("3", "2", np.__version__)
    assert here["processor"]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    assert made_with(2) != here

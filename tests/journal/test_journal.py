"""The journal: metrics.jsonl through kills, resumes and rollbacks; TensorBoard; the terminal; the report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from coretrain.base.errors import UserError
from coretrain.journal.chart import (
    POINTS,
    Line,
    chart,
    linear_ticks,
    log_ticks,
)
from coretrain.journal.metrics import gaps, read_metrics
from coretrain.journal.page import compare_plot, write_report
from tests.support.journals import journal, printed, train
from tests.support.refusal import refused


def lines(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_every_update_is_on_disk_at_full_precision_before_the_next(tmp_path):
    with journal(tmp_path) as book:
        book.update(0, 0.1 + 0.2, 1 / 3, 3e-4, 2048, "ab", 0.25, learned=7)
        assert lines(tmp_path) == [
            {"update": 0, "loss": 0.1 + 0.2, "grad_norm": 1 / 3, "lr": 3e-4, "tokens": 2048, "batch_hash": "ab"}
            | {"smoothed_loss": 0.1 + 0.2, "learned": 7}
        ]
        book.evaluation(1, 5.25, {"bits_per_byte": 2.125})
        assert lines(tmp_path)[-1] == {"update": 1, "val_loss": 5.25, "bits_per_byte": 2.125}


def test_non_finite_numbers_are_null_in_strict_json(tmp_path):
    with journal(tmp_path) as book:
        book.update(0, math.nan, math.inf, 1e-3, 2048, "ab", 0.5)
        book.update(1, 4.0, -math.inf, 1e-3, 2048, "ab", 0.0)
        book.evaluation(2, math.nan, {"bits_per_byte": math.nan})
        book.close("stopped", best=None)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert [rows[0]["loss"], rows[0]["grad_norm"], rows[0]["smoothed_loss"]] == [None] * 3
    assert [rows[1]["loss"], rows[1]["grad_norm"], rows[1]["smoothed_loss"]] == [4.0, None, 4.0]
    assert rows[2]["val_loss"] is None
    assert "not finite" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("resume_at", [0, 4, 8])
@pytest.mark.parametrize("torn", ["", '{"update": 11, "loss": 5.0', "\0\0\0"])
def test_a_killed_and_resumed_run_has_the_file_of_an_undisturbed_one(tmp_path, resume_at, torn):
    with journal(tmp_path / "whole") as book:
        train(book, 0, 12)
    with journal(tmp_path / "killed") as book:
        train(book, 0, 11, seconds=0.7)
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert len(read_metrics(tmp_path / "killed")[0]) == 11
    with journal(tmp_path / "killed", resume_at) as book:
        train(book, resume_at, 12)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed").iterdir() if path.name.startswith(".tmp")] == []


def test_a_hole_before_the_last_line_is_refused(tmp_path):
    with journal(tmp_path) as book:
        train(book, 0, 3)
    path = tmp_path / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], rows[1][:20], rows[2]]) + "\n")
    with refused("journal/line-damaged"):
        read_metrics(tmp_path)


ROW = {"update": 2, "loss": 5.0, "grad_norm": 1.0, "lr": 1e-3, "tokens": 1, "batch_hash": "x", "seconds": 0.1}


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": "5.0"},
        {"loss": math.nan},
        {"update": None},
        {"update": -1},
        {"update": "2"},
        {"lr": None},
        {"seconds": [0.1]},
        {"batch_hash": 7},
    ],
)
def test_a_line_that_says_something_else_is_refused(tmp_path, changed):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(ROW | changed) + "\n")
    for attempt in (lambda: read_metrics(tmp_path), lambda: journal(tmp_path, 3)):
        with refused("journal/line-damaged", "metrics.jsonl", "line 1"):
            attempt()


def test_a_line_with_another_key_or_no_end_is_refused(tmp_path):
    """Only a line without its end was cut off by a kill."""
    wrong = ["[" * 5000, "7", "{}", "\0\0", *(json.dumps({k: v for k, v in ROW.items() if k != key}) for key in ROW)]
    for line in [*wrong, json.dumps({"update": 1, "val_los3": 1.0, "bits_per_byte": 1.0})]:
        (tmp_path / "metrics.jsonl").write_text(line + "\n")
        with refused("journal/line-damaged", "line 1"):
            read_metrics(tmp_path)


def test_a_journal_that_ends_before_its_checkpoint_is_said(tmp_path):
    """An evaluation that is gone can't be told from one that never was, but the line of the save stands behind it."""
    with journal(tmp_path) as book:
        train(book, 0, 8)
    whole = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert gaps(tmp_path, 8, saved=True) == ""
    (tmp_path / "metrics.jsonl").write_text("".join(whole[:-1]))
    assert "ends before the line of the checkpoint after 8 updates" in gaps(tmp_path, 8, saved=True)
    assert gaps(tmp_path, 8) == "", "a run that goes on"


@pytest.mark.parametrize(
    ("kept", "end", "words"),
    [
        (range(12), "", []),
        (range(12), '{"update": 11, "lo', []),  # beyond the checkpoint, and written anew
        (range(6), "", ["lacks 2 of 8 updates (6-7)"]),
        ([0, 3, 4, 5, 7, 8], "", ["lacks 3 of 8 updates (1-2, 6)"]),
        ([0, 1, 2, 3, 3, 4, 5, 6, 7], "", ["has 1 more than once (3)"]),
        ([0, 2, 2, 4, 6], '{"up', ["lacks 4 of 8 updates (1, 3, 5, 7)", "has 1 more than once (2)", "cut off"]),
        (None, "", ["lacks 8 of 8 updates (0-7)"]),
    ],
)
def test_what_a_journal_lacks_is_said_at_a_resume(tmp_path, kept, end, words):
    if kept is not None:
        written = [json.dumps(ROW | {"update": n}) + "\n" for n in kept]
        at = next((n for n, update in enumerate(kept) if update >= 8), len(written))
        written.insert(at, json.dumps({"update": 8, "event": "checkpoint", "text": "x"}) + "\n")
        (tmp_path / "metrics.jsonl").write_text("".join(written) + end)
    with journal(tmp_path, 8) as book:
        said = book.gaps
        train(book, 8, 12)
    assert bool(said) == bool(words)
    assert [part for part in words if part not in said] == [], said
    assert [row["update"] for row in read_metrics(tmp_path)[0]] == [n for n in kept or () if n < 8] + [8, 9, 10, 11]


def test_a_rollback_forgets_the_updates_and_remembers_itself(tmp_path):
    with journal(tmp_path) as book:
        train(book, 0, 7)
        book.event(7, "rollback", "loss is nan")
        book.rewind(4)
        book.event(4, "rollback", "back to update-4")
        assert book.smoothed / book.weight == pytest.approx(lines(tmp_path)[3]["smoothed_loss"], rel=1e-15)
        train(book, 4, 12, loss=3.0)
    updates, evaluations, events = read_metrics(tmp_path)
    assert [row["update"] for row in updates] == list(range(12))
    assert updates[4]["loss"] == 3.0
    assert [row["update"] for row in evaluations] == [4, 8, 12]
    assert [(e["update"], e["event"]) for e in events[:4]] == [
        *[(4, "checkpoint"), (7, "rollback"), (4, "rollback"), (4, "skip")]
    ]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    found = {}
    for tag in board.Tags()["scalars"]:
        events = board.Scalars(tag)
        found[tag] = {event.step: event.value for event in events}
        assert len(found[tag]) == len(events), f"{tag} has a step twice"
    return found


@pytest.mark.parametrize("resume_at", [0, 4])
def test_tensorboard_has_each_step_once_after_a_resume(tmp_path, resume_at):
    board = {"journal__tensorboard": "true"}
    with journal(tmp_path, **board) as book:
        train(book, 0, 7)
    with journal(tmp_path, resume_at, **board) as book:
        train(book, resume_at, 12, loss=3.0)
    found = scalars(tmp_path)
    assert found.keys() == {f"train/{name}" for name in ("loss", "grad_norm", "lr", "tokens_per_second")} | {
        *("validation/loss", "validation/bits_per_byte")
    }
    assert list(found["train/loss"]) == list(range(12))
    assert list(found["validation/loss"]) == [4, 8, 12]  # the one at the resume itself is easily lost
    assert found["train/loss"][5] == 3.0
    assert (found["train/loss"][2] == 3.0) == (resume_at == 0)


def test_a_pipe_gets_plain_lines_at_the_interval_and_a_terminal_what_fits_it(tmp_path):
    with journal(tmp_path / "pipe") as book:
        book.header({"machine": [("attention", "sdpa (pip install 'twintrain[flash]')")], "batch": "8 rows"})
        train(book, 0, 12)
        book.event(12, "checkpoint", "/runs/[/b]/[bold]x")  # brackets that a markup reader would choke on or eat
        book.sample("def ", "f(): return '[red]'\x1b[2J")
        book.close("finished", best={"update": 12, "val_loss": 4.4})
    text = printed(book)
    assert re.findall(r"update +(\d+)/12", text) == ["1", "5", "10", "12"]
    for wanted in ("'twintrain[flash]'", "/runs/[/b]/[bold]x", "'[red]'", "after 12 updates", "report.html"):
        assert wanted in text
    assert "\x1b" not in text
    with journal(tmp_path / "terminal", terminal=True) as book:
        book.header({"machine": [("attention", "sdpa (pip install 'twintrain[flash]')")]})
        train(book, 0, 12)
        book.close("finished")
    assert "'twintrain[flash]'" in printed(book)
    assert "12/12" in printed(book)
    assert book.live is None


def test_an_exception_ends_the_live_display(tmp_path):
    def broken() -> None:
        with book:
            book.update(0, 5.0, 1.0, 1e-3, 2048, "ab", 0.5)
            assert book.live is not None
            raise RuntimeError("out of memory")

    book = journal(tmp_path, terminal=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        broken()
    assert book.live is None
    assert printed(book).rfind("\x1b[?25h") > printed(book).rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_mfu_is_stated_only_against_a_peak(tmp_path):
    for peak, shown in (("none", False), ("0.5", True)):
        with journal(tmp_path / peak, execution__peak_tflops=peak) as book:
            train(book, 0, 1)
        assert ("MFU" in printed(book)) == shown


def test_wandb_that_is_missing_is_said_before_anything_is_trimmed(tmp_path, monkeypatch):
    with journal(tmp_path) as book:
        train(book, 0, 8)
    before = (tmp_path / "metrics.jsonl").read_text()
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=re.escape("pip install 'twintrain[wandb]'")):
        journal(tmp_path, 4, journal__wandb="true")
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_the_report_stands_alone(tmp_path):
    with journal(tmp_path) as book:
        train(book, 0, 12)
        book.sample("def ", "f(x): return x < 1 & '</pre><script>alert(1)</script>'")
        book.close("finished")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|\bsrc=|<link|@import|url\(", page)
    assert "<script>alert" not in page
    assert "x &lt; 1" in page
    assert page.count("<figure") == 4
    assert page.count('class="mark" cx') == 3
    assert page.count('<path class="trouble"') == 1
    assert len(re.findall(r'<path class="(?:main|faint)" d="M[\d. ML]+"', page)) == 7
    for wanted in (f"{5.5 - 0.1 * 11:.4f}", "24,576", "PyTorch", "batch_size", "gradient norm is nan"):
        assert wanted in page
    assert "prefers-color-scheme: dark" in page


def test_the_report_of_a_run_with_no_update_and_of_a_long_one(tmp_path):
    with journal(tmp_path) as book:
        book.close("stopped")
    assert "stopped" in (tmp_path / "report.html").read_text()
    row = {"grad_norm": 1.0, "lr": 1e-3, "tokens": 1, "batch_hash": "x", "seconds": 0.1}
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for n in range(20000):
            file.write(json.dumps({"update": n, "loss": 40.0 if n == 12345 else 5.0 + n % 7} | row) + "\n")
    page = write_report(tmp_path).read_text()
    assert len(page) < 300_000
    assert ">40</text>" in page  # thinned, but its spike is still there


def test_a_curve_keeps_its_gaps_and_spikes():
    values = [1.0] * 5000
    values[2500], values[3336] = math.nan, 9.0  # the spike stands inside its bucket
    drawn = re.search(r'class="main" d="([^"]+)"', chart("t", "u", range(1, 5001), [Line("x", values)]))[1]
    assert drawn.count("M") == 2
    assert len(re.findall("[ML]", drawn)) <= 2 * POINTS
    heights = sorted(float(y) for y in re.findall(r" ([\d.]+)", drawn))
    assert heights[0] < heights[1]


@pytest.mark.parametrize(
    "values", [[1e308, -1e308, 1.0], [1e308], [5e-324, 1.5e-323], [1e300, -1e300], [1e16, 1e16 + 2]]
)
@pytest.mark.parametrize("log", [False, True])
def test_a_curve_of_numbers_at_the_ends_of_float64_is_drawn(values, log):
    """As a reward function may give them. What is beyond 1e300 leaves a gap, as what isn't finite does."""
    drawn = chart("t", "u", range(len(values)), [Line("x", values)], log=log)
    assert not re.search("nan|inf[^o]", drawn)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 8.1), (5.01, 5.02), (1, 400), (1e-9, 3e-9)])
def test_ticks_are_few_and_inside(low, high):
    assert 2 <= len(linear_ticks(low, high, 5)) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in linear_ticks(low, high, 5))
    if low > 0:
        assert all(low <= tick <= high for tick in log_ticks(low, high))
        assert len(log_ticks(low, high)) <= 6


def test_the_picture_of_two_runs(tmp_path):
    for name in ("a", "b"):
        with journal(tmp_path / name) as book:
            train(book, 0, 12, loss=None if name == "a" else 5.0)
            book.evaluation(12, math.nan, {"bits_per_byte": math.nan})
    compare_plot([tmp_path / "a", tmp_path / "b"], ["PyTorch", "JAX"], tmp_path / "twins.png")
    assert (tmp_path / "twins.png").read_bytes().startswith(b"\x89PNG")

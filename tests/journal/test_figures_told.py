"""Figures of the journal by hand: the smoothed loss, speed and time left, words for numbers, axes and their ticks."""

from __future__ import annotations

import json
import math
import re

import pytest

from coretrain.journal.chart import (
    POINTS,
    Frame,
    buckets,
    drawable,
    limits,
    linear_ticks,
    log_ticks,
    path,
    rounded,
    short,
)
from coretrain.journal.metrics import clock, gaps, number, rewound
from coretrain.journal.segments import Segment, begin_segment, read_segments, trained_where
from tests.support.journals import journal, printed


def told(book, n: int, loss: float = 5.0, seconds: float = 1.0) -> None:
    book.update(n, loss, 1.0, 1e-3, 8 * (n + 1), f"{n:016x}", seconds)


def rows_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_smoothed_loss_by_hand(tmp_path):
    """A mean whose weights fall by 0.95: of 4 alone 4; of 4 and 2 (0.95 x 4 + 2) / 1.95; what isn't finite has none."""
    with journal(tmp_path) as book:
        for n, loss in enumerate((math.nan, 4.0, 2.0, math.inf, 3.0)):
            told(book, n, loss)
    found = [row["smoothed_loss"] for row in rows_of(tmp_path)]
    two, three = (0.95 * 4 + 2) / 1.95, (0.95**2 * 4 + 0.95 * 2 + 3) / (0.95**2 + 0.95 + 1)
    assert found == [None, *(pytest.approx(value, rel=1e-14) for value in (4.0, two, two, three))]
    with journal(tmp_path, start=3) as book:  # a resume takes it up again
        told(book, 3, 3.0)
    assert rows_of(tmp_path)[3]["smoothed_loss"] == pytest.approx(three, rel=1e-14)


def test_speed_and_time_left_by_hand(tmp_path):
    """Of the last 20 updates: 1 of 21 seconds and 19 of 1 make 2 seconds each; the 21st before them is forgotten."""
    with journal(tmp_path, train__updates="121", train__log_interval="7", train__batch_size="4") as book:
        tokens = book.config.tokens_per_update
        for n in range(21):
            told(book, n, seconds={0: 1000.0, 1: 21.0}.get(n, 1.0))
    lines = [line for line in printed(book).splitlines() if line.startswith("update")]
    assert [re.search(r"update +(\d+)/121", line)[1] for line in lines] == ["1", "7", "14", "21"]
    assert f"{tokens / 1000:,.0f} tokens/s" in lines[0]
    assert f"{tokens / 2:,.0f} tokens/s" in lines[-1]
    assert lines[-1].endswith("3m20s left"), "100 updates of 2 seconds"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "0s"), (0, "0s"), (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (60, "1m00s"), (187, "3m07s"),
        (3599, "59m59s"), (3600, "1h00m"), (7199, "1h59m"), (7500, "2h05m"), (100 * 3600, "100h00m"),
    ],
)  # fmt: skip
def test_a_clock_by_hand(seconds, words):
    assert clock(seconds) == words


def test_a_loss_in_words():
    assert [number(x) for x in (2.34567, 0.0, None, math.nan, math.inf)] == ["2.3457", "0.0000"] + ["not finite"] * 3


ROWS = [
    {"update": 3, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "tokens": 1, "batch_hash": "", "seconds": 1.0},
    {"update": 4, "event": "skip", "text": ""},
    {"update": 4, "event": "rollback", "text": ""},
    {"update": 4, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "tokens": 1, "batch_hash": "", "seconds": 1.0},
    {"update": 4, "val_loss": 1.0, "bits_per_byte": 1.0},
    {"update": 4, "event": "checkpoint", "text": ""},
    {"update": 5, "val_loss": 1.0, "bits_per_byte": 1.0},
    {"update": 9, "event": "rollback", "text": ""},
]


@pytest.mark.parametrize(
    ("redone", "keep", "left"),
    [
        # after 4 updates there are the rows 0 to 3; evaluations and checkpoints after 4, and whatever came before
        ((), (), [0, 1, 2, 4, 5]),
        (("skip", "rollback"), (), [0, 4, 5]),  # of updates that are yet to be met again
        (("skip",), ("rollback",), [0, 2, 4, 5, 7]),
    ],
)
def test_what_stays_of_a_journal_after_four_updates(tmp_path, redone, keep, left):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    rewound(tmp_path, 4, redone, keep).close()
    assert rows_of(tmp_path) == [ROWS[place] for place in left]


@pytest.mark.parametrize(
    ("updates", "done", "said"),
    [
        ([0, 1, 2, 3], 4, ""),
        ([0, 1, 2, 3, 4], 4, ""),
        ([0, 2], 3, "lacks 1 of 3 updates (1)"),
        ([], 3, "lacks 3 of 3 updates (0-2)"),
        ([0, 1, 1, 2], 3, "has 1 more than once (1)"),
        ([0, 5, 9, 13, 17, 21], 22, "lacks 16 of 22 updates (1-4, 6-8, 10-12, 14-16, ...)"),
    ],
)
def test_gaps_by_hand(tmp_path, updates, done, said):
    rows = [json.dumps(ROWS[0] | {"update": n}) + "\n" for n in updates]
    (tmp_path / "metrics.jsonl").write_text("".join(rows))
    found = gaps(tmp_path, done)
    assert found == (f"{tmp_path / 'metrics.jsonl'} {said}: its curves may not be whole" if said else "")


@pytest.mark.parametrize(("last", "cut"), [(3, True), (4, False)])
def test_a_line_cut_off_beyond_what_was_done_is_written_anew(tmp_path, last, cut):
    """After four updates it is said; where a fifth is there already, the resume takes that and the cut line away."""
    rows = [json.dumps(ROWS[0] | {"update": n}) + "\n" for n in range(last + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(rows) + '{"upd')
    assert ("cut off" in gaps(tmp_path, 4)) is cut


def test_segments_by_hand(tmp_path):
    """Of four updates a segment that begins at 4 made none; one that begins anew at 2 takes the place of that of 2."""
    torch, jax = Segment(0, "torch", "cpu"), Segment(4, "jax", "cpu")
    assert trained_where([torch, jax], 4) == "in PyTorch on cpu"
    assert trained_where([torch, jax], 5) == "in PyTorch on cpu (updates 1 to 4), then in JAX on cpu (update 5)"
    for segment in (torch, Segment(2, "jax", "cpu"), jax, Segment(2, "torch", "gpu")):
        begin_segment(tmp_path, segment)
    assert read_segments(tmp_path) == [torch, Segment(2, "torch", "gpu")]


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 10, 4, [0, 5, 10]),
        (0, 9, 5, [0, 2, 4, 6, 8]),
        (3, 28, 5, [5, 10, 15, 20, 25]),
        (-1, 1, 4, [-1, -0.5, 0, 0.5, 1]),
        (0, 1200, 8, [0, 200, 400, 600, 800, 1000, 1200]),
        (7, 7, 5, [7]),
    ],
)
def test_ticks_by_hand(low, high, most, ticks):
    assert linear_ticks(low, high, most) == pytest.approx(ticks, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.1, 1000, [0.1, 1, 10, 100, 1000]),
        (0.5, 60, [1, 3, 10, 30]),
        (1, 6, [1, 2, 5]),
        (2.5, 7, [3, 4, 5, 6]),
        (1e-6, 1e6, [1e-6, 1e-3, 1, 1e3, 1e6]),
    ],
)
def test_ticks_of_a_logarithmic_axis_by_hand(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "log", "found"),
    [
        ([5.0, 10.0], False, (4.8, 10.2)),  # 4% of 5 on both sides
        ([0.1, 10.0], False, (0.0, 10.396)),  # none below 0 where nothing is
        ([-1.0, 1.0], False, (-1.08, 1.08)),
        ([2.0], False, (1.9, 2.1)),  # 5% of itself
        ([0.0], False, (0.0, 1.0)),
        ([2.0, 20.0], True, (2 / 1.1, 22.0)),
        ([], False, (0.0, 1.0)),
        ([], True, (0.1, 1.0)),
    ],
)
def test_limits_by_hand(values, log, found):
    assert limits(values, log) == pytest.approx(found, rel=1e-12)


def test_labels_by_hand():
    words = {0: "0", 0.0005: "0.0005", 1e-4: "0.0001", 5e-5: "5e-5", 1.5e-7: "1.5e-7", 9999: "9999", 10_000: "10k"}
    words |= {6200: "6200", 62_000: "62k", 1.5e6: "1.5M", 2e9: "2G", -20_000: "-20k", 12.345678: "12.35"}
    assert {value: short(value) for value in words} == words
    assert [rounded(value) for value in (1.23456789, 1234567.8, math.nan)] == [1.23457, 1234570.0, None]


def test_which_points_are_drawn_by_hand():
    """A box of 100 x 100 inside; every value of a short line; of a bucket the smallest and the largest, in order."""
    frame = Frame(0, 10, 0, 10, 100 + 58, 100 + 34, False)
    assert path(frame, [0, 5, 10], [0.0, 10.0, 5.0]) == "M46.0 108.0L96.0 8.0L146.0 58.0"
    assert path(frame, [0, 5, 10], [0.0, math.nan, 5.0]) == "M46.0 108.0M146.0 58.0"
    logarithmic = Frame(0, 10, 1, 100, 100 + 58, 100 + 34, True)
    assert path(logarithmic, [0, 5, 10], [1.0, 10.0, 0.0]) == "M46.0 108.0L96.0 58.0"
    assert [drawable(0.0, log) for log in (False, True)] == [True, False]
    assert POINTS == 600
    assert [len(buckets(count)) for count in (1, 599, 600, 601, 5000)] == [1, 599, 600, 600, 600]
    assert [list(bucket) for bucket in buckets(1200)[:2]] == [[0, 1], [2, 3]]
    updates = list(range(2400))  # four to a bucket
    values = [{1: 9.0, 2: 1.0}.get(n % 4, 5.0) for n in updates]
    drawn = re.findall(r"[ML]([\d.]+) ([\d.]+)", path(Frame(0, 2400, 0, 10, 2458, 134, False), updates, values))
    assert len(drawn) == 2 * 600
    assert drawn[:3] == [("47.0", "18.0"), ("48.0", "98.0"), ("51.0", "18.0")]

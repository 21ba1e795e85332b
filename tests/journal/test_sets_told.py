"""Gain and forgetting by hand, and what the terminal and the page say of named sets."""

from __future__ import annotations

import json
import re

import pytest

from coretrain.journal.figures import validation_key
from coretrain.journal.sets import Change, changes, drawn, evaluated_lines, first_of, section, table
from tests.support.journals import journal, printed

FIRST = {"update": 0, "val_loss": 3.0, "bits_per_byte": 1.0}
FIRST |= {"val_loss/old": 2.0, "bits_per_byte/old": 1.0, "val_loss/new": 4.0, "bits_per_byte/new": 2.0}
LAST = {"update": 9, "val_loss": 2.0, "bits_per_byte": 0.7}
LAST |= {"val_loss/old": 2.5, "bits_per_byte/old": 1.25, "val_loss/new": 1.0, "bits_per_byte/new": 0.5}


def test_gain_and_forgetting() -> None:
    old, new = changes(FIRST, LAST)
    assert (old.gain, old.forgetting, new.gain, new.forgetting) == (-0.25, 0.25, 1.5, 0.0)
    assert table(FIRST, LAST) == [
        ("old", "1.0000 -> 1.2500  gain -0.2500  forgotten 0.2500"),
        ("new", "2.0000 -> 0.5000  gain +1.5000  forgotten 0.0000"),
    ]
    alone = Change("x", None, 1.0)
    assert (alone.gain, alone.forgetting, alone.words()) == (None, None, "1.0000")
    assert Change("x", 1.0, None).words() == "not finite"


def test_before_is_an_evaluation_before_any_update() -> None:
    assert first_of([FIRST, LAST], [{"update": 0}]) == FIRST
    assert first_of([LAST], [{"update": 0}]) == {}
    assert first_of([{"update": 5}], [{"update": 5}]) == {"update": 5}, "a run that goes on from another's update 5"
    assert first_of([], []) == {}


def test_lines_fit_a_terminal() -> None:
    assert evaluated_lines(FIRST, LAST) == [
        "  old  1.2500 bits per byte (+0.2500), 2.5000 nats a token",
        "  new  0.5000 bits per byte (-1.5000), 1.0000 nats a token",
    ]
    wide = "x" * 20
    row = {f"bits_per_byte/{wide}": 12.5, f"val_loss/{wide}": 12.5}
    assert max(map(len, evaluated_lines(row | {"update": 0}, row))) <= 80
    assert 2 + 20 + 1 + len(changes(row, row)[0].words()) <= 80


def test_a_resumed_run_keeps_its_first_evaluation(tmp_path) -> None:
    def figures(row):
        return {key.removeprefix("val_"): value for key, value in row.items() if key not in ("update", "val_loss")}

    assert {validation_key(name) for name in figures(FIRST)} == FIRST.keys() - {"update", "val_loss"}
    with journal(tmp_path) as book:
        book.evaluation(0, 3.0, figures(FIRST))
        for n in range(3):
            book.update(n, 2.0, 1.0, 1e-3, 8, f"{n:016x}", 1.0)
    with journal(tmp_path, start=3) as book:
        for n in range(3, 9):
            book.update(n, 2.0, 1.0, 1e-3, 8, f"{n:016x}", 1.0)
        book.evaluation(9, 2.0, figures(LAST))
    assert "(+0.2500)" in printed(book)


def test_a_run_that_begins_again_has_one_first_evaluation(tmp_path) -> None:
    for n in range(2):
        with journal(tmp_path) as book:
            book.evaluation(0, 3.0, {"bits_per_byte/old": 1.0 + n, "loss/old": 1.0})
            book.update(0, 2.0, 1.0, 1e-3, 8, "0" * 16, 1.0)
            book.rewind(0)  # a rollback to the very beginning evaluates nothing anew
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["bits_per_byte/old"] for row in rows] == [2.0]


def test_the_page() -> None:
    assert drawn([FIRST]) == []
    assert section([], []) == ""
    (figure,) = drawn([FIRST, LAST])
    assert "old: from 1 to 1.25; new: from 2 to 0.5" in figure
    told = section([FIRST, LAST], [{"update": 0}])
    assert "<td>old</td><td>1.0000</td><td>1.2500</td><td>-0.2500</td><td>0.2500</td>" in told
    hostile = section([{"update": 0, "bits_per_byte/<b>": 1.0}], [])
    assert "<b>" not in hostile
    assert "&lt;b&gt;" in hostile


def test_an_evaluation_before_the_first_update_has_its_place(tmp_path) -> None:
    with journal(tmp_path) as book:
        book.evaluation(0, 3.0, {"bits_per_byte": 1.0})
        for n in range(4):
            book.update(n, 2.0, 1.0, 1e-3, 8, f"{n:016x}", 1.0)
        book.close("finished")
    page = (tmp_path / "report.html").read_text()
    place = re.search(r'<circle class="mark" cx="([0-9.]+)"[^>]*><title>validation after 0 updates', page)
    assert place
    assert float(place[1]) == 34.0, "on the axis of losses, not left of it"


@pytest.mark.parametrize("key", ["bits_per_byte", "bits_per_byte/x"])
def test_bits_per_byte_keep_their_name(key: str) -> None:
    assert validation_key(key) == key

"""What takes long runs where a mark asks for it, and nowhere else: leaving one mark out asks for no other."""

from __future__ import annotations

import pytest

from parity.marks import asks_for, left_out

EVERYTHING, LADDER = ["tests", "parity"], ["/some/where/parity/"]
LONG = [{"slow"}, {"slow", "scale", "whole"}, {"mutation"}, {"mutation", "one_side"}, {"slow", "tpu_compiler"}]


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        ("", set()),
        ("slow", {"slow"}),
        ("not slow", set()),
        ("not whole", set()),
        ("not (whole or slow)", set()),
        ("not not slow", {"slow"}),
        ("slow and not whole", {"slow"}),
        ("mutation and one_side", {"mutation", "one_side"}),
        ("slow or (scale and not mutation)", {"slow", "scale"}),
        ("slowly or a_mutation", set()),
        ("device(name='slow')", set()),
        ("slow and", set()),
    ],
)
def test_a_mark_is_asked_for_where_it_brings_a_test_in(expression, asked):
    assert {mark for mark in ("slow", "mutation", "one_side", "scale", "whole") if asks_for(expression, mark)} == asked


@pytest.mark.parametrize("words", [EVERYTHING, ["tests"], ["tests/config/test_config.py"], LADDER])
@pytest.mark.parametrize("expression", ["", "not whole", "whole", "scale", "not slow", "not mutation", "one_side"])
def test_nothing_long_runs_unasked(expression, words):
    assert all(left_out(marks, expression, words) for marks in LONG)
    assert not left_out(set(), expression, words)
    assert not left_out({"whole"}, expression, words), "-m alone leaves these out"


@pytest.mark.parametrize("words", [EVERYTHING, LADDER])
def test_what_is_asked_for_runs(words):
    assert not left_out({"slow", "scale"}, "slow", words)
    assert not left_out({"mutation", "one_side"}, "mutation and one_side", words)
    assert not left_out({"mutation"}, "mutation", words)
    assert not left_out({"slow"}, "slow and not whole", words)
    assert not left_out({"scale"}, "scale", words)
    assert left_out({"slow"}, "mutation", words)
    assert left_out({"mutation"}, "slow", words)


def test_what_is_asked_for_by_its_id_runs():
    words = ["parity/ladder/test_mutation.py::test_every_planted_bug"]
    assert not left_out({"mutation"}, "", words)
    assert not left_out({"slow"}, "", words)


def test_the_rungs_of_scale_are_of_the_whole_and_not_of_the_ladder():
    assert not left_out({"scale", "whole"}, "", EVERYTHING)
    assert not left_out({"scale", "whole"}, "", ["parity/ladder/test_zero.py"])
    assert not left_out({"scale", "whole"}, "scale", LADDER)
    for expression in ("", "not whole", "whole", "not slow", "mutation"):
        assert left_out({"scale", "whole"}, expression, LADDER)

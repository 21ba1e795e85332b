"""Input that is no text in the terminal's encoding."""

from __future__ import annotations

import io
import sys

import pytest

from coretrain.base.streams import ready_input
from coretrain.inference.generate import questions

TYPED = b"caf\xe9\nfor two\n"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize(("encoding", "first"), [("utf-8", "caf\ufffd"), ("latin-1", "caf\xe9")])
def test_bytes_that_are_no_text_are_read_as_such(
    monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str, first: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TYPED), encoding, errors))
    ready_input()
    assert sys.stdin.read() == f"{first}\nfor two\n"


def test_a_question_with_such_bytes_is_answered_and_so_is_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TYPED), "utf-8"))
    assert list(questions()) == ["caf\ufffd", "for two"]


def test_what_was_read_from_or_made_by_another_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    read = io.TextIOWrapper(io.BytesIO(b"one\ntwo\n"), "utf-8")
    assert read.readline() == "one\n"
    for stream in (read, io.StringIO("two\n"), None):
        monkeypatch.setattr(sys, "stdin", stream)
        ready_input()
        assert stream is None or stream.readline() == "two\n"

"""Limits of what comes from outside: depth and size of JSON and TOML, numbers, time, the length of a line."""

from __future__ import annotations

import argparse
import json
import re
import time

import pytest

from coretrain.base.errors import exits_cleanly, one_line
from coretrain.base.files import check_picture, read_json
from coretrain.base.numbers import real_number, told_number, whole_number
from coretrain.base.parse import DEEPEST, LARGEST_TOML, TooDeepError, from_json, from_toml, read_bytes, shown
from coretrain.base.timing import within
from tests.support.nested import DEEP
from tests.support.refusal import refused


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("form", [str, str.encode])
def test_json_is_as_deep_as_the_limit_and_no_deeper(opening, form):
    closing = {"[": "]"}.get(opening, "}")
    for depth in (1, DEEPEST):
        assert from_json(form(opening * depth + "1" + closing * depth))
    for depth in (DEEPEST + 1, 500, 100_000):
        with pytest.raises(TooDeepError):
            from_json(form(opening * depth + "1" + closing * depth))
    assert from_json(json.dumps([[]] * 1000)) == [[]] * 1000, "wide is not deep"


@pytest.mark.parametrize("text", [f"a = {DEEP}", "a." * 20_000 + "a = 1", "[" + '"b" . ' * 80_000 + "a]"])
def test_toml_is_no_deeper_and_no_longer(text):
    began = time.process_time()
    with pytest.raises(TooDeepError):
        from_toml(text)
    assert time.process_time() - began < 1, "tomllib takes 4 seconds to read such keys"
    assert from_toml("a = '" + "x." * 50 + "'")["a"]
    with pytest.raises(ValueError, match="longer"):
        from_toml("#" * (LARGEST_TOML + 1))


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400, "0x" + "f" * 5000, "9" * 5000])
def test_toml_has_numbers_that_are_floats_too(number):
    for text in (f"a = {number}", f"[a]\nb = [{{c = {number}}}]"):
        with pytest.raises(ValueError, match="digits"):
            from_toml(text)
    assert from_toml(f"a = {'9' * 300}")["a"] == 10**300 - 1


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="larger"):
        read_bytes(tmp_path / "x", 4)
    (tmp_path / "deep.json").write_text('{"a":' * 2000)
    with refused("base/json-not-an-object", "deep.json"):
        read_json(tmp_path / "deep.json", "a thing")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("0", 0), ("1_000", 1000), (str(2**53), 2**53), (str(2**53 + 1), None), ("9" * 5000, None), ("-1", None)),
        *((text, None) for text in ("", " ", "1.0", "nan", "true", "0x10", "\u0663")),
    ],
)
def test_whole_numbers(text, value, monkeypatch):
    monkeypatch.setenv("RANK", text)
    if value is None:
        with pytest.raises(argparse.ArgumentTypeError, match="is no whole number from 0 to 9007199254740992") as caught:
            whole_number()(text)
        assert len(str(caught.value)) < 300
        with refused("base/environment-number-wrong", "RANK"):
            told_number("RANK")
    else:
        assert whole_number()(text) == value
        assert told_number("RANK", most=2**53) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-0.1", "1.1", "x", "", "\u0663", "[1]"])
def test_real_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no number from 0 to 1"):
        real_number(most=1)(text)
    assert real_number(most=1)("1e-3") == 1e-3


def test_what_a_launcher_left_out(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert told_number("WORLD_SIZE", 1) == 1
    with refused("base/environment-number-wrong", "WORLD_SIZE", "is not set"):
        told_number("WORLD_SIZE")


def test_a_value_in_a_sentence():
    assert [shown(value) for value in ("a", "", "a\nb", 3, [1])] == ["a", "''", "'a\\nb'", "3", "[1]"]
    assert shown("a", quoted=True) == "'a'"
    assert shown("x" * 5000) == "x" * 120 + "... (5,000 characters)"
    assert shown(16**5000) == "a int too long to show"
    assert one_line("a\nb\x1b[31m\u00e9") == "a\\nb\\x1b[31m\u00e9"
    assert len(one_line("x" * 10**6)) < 3000
    ideographic = "\u7b2c 1\u3000\u884c"  # a blank of Chinese and Japanese texts, as a path may have it
    assert shown(ideographic) == one_line(ideographic) == ideographic


def test_what_takes_too_long_is_given_up():
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"0\.1 seconds"), within(0.1):
            re.match("(a|a)*b", "a" * 60)
    with within(0.01):
        pass
    began = time.process_time()
    while time.process_time() - began < 0.05:  # or the limit would outlive its block
        pass


def test_a_limit_within_another_does_not_end_it():
    def slow():
        with within(60):
            pass
        began = time.process_time()
        while time.process_time() - began < 3:
            sum(range(10_000))

    with pytest.raises(TimeoutError, match=r"0\.1 seconds"), within(0.1):
        slow()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you\nstack"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
    ],
)
def test_too_little_memory_is_a_sentence(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        exits_cleanly(main)()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there isn't as much memory as this takes")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug of ours"), RuntimeError(), RecursionError("maximum depth")])
def test_another_error_of_the_run_is_a_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        exits_cleanly(main)()


def test_an_error_is_said_whatever_stands_for_the_rank(capsys, monkeypatch):
    for rank, lines in (("0", 1), ("abc", 1), ("", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        with pytest.raises(SystemExit):
            exits_cleanly(lambda: told_number("NO_SUCH_VARIABLE"))()
        assert capsys.readouterr().err.count("\n") == lines, rank


def test_names_of_pictures(tmp_path):
    check_picture(tmp_path / "a.PNG", "--plot")
    for name in ("a", "a.xyz", "a.txt", ".png"):
        with refused("base/picture-kind-unknown", "--plot", name):
            check_picture(tmp_path / name, "--plot")
    with refused("base/picture-folder-missing", "nowhere"):
        check_picture(tmp_path / "nowhere" / "a.png", "--plot")

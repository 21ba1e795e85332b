"""The bench beside datatrove: its figures by hand, and its inputs."""

from __future__ import annotations

import sys

import pytest

from bench.corpus import FILES, STAGES, cells, crawled, kept, row_of, whole_told
from bench.corpus_turns import Child, family, watched
from bench.page_text import SMALLEST
from coretrain.corpus.document import Page
from coretrain.corpus.readers.open import plan, read
from tests.support.near_limits import near_limits


def test_words_are_counted_as_often_as_they_stand():
    ours, theirs = {"a": "One two two three", "b": "x"}, {"a": "two two two four", "b": "x", "c": "gone"}
    # a: 2 of 4 of theirs, 2 of 4 of ours; b: 1 of 1; c: 0 of 1, since ours lacks the page
    assert kept(ours, theirs) == {"of theirs": 3 / 6, "of theirs, median": 0.5, "of ours": 3 / 5}


def test_ratios_are_taken_within_a_round():
    stage = next(one for one in STAGES if one.name == "WARC to text")
    row = row_of(stage, [1.0, 2.0, 4.0], [10.0, 40.0, 12.0], 100.0)
    assert (row["speed"], row["peer"]) == (50.0, 100 / 12)
    assert (row["least"], row["ratio"], row["most"]) == (3.0, 10.0, 20.0)
    assert cells(row) == ("WARC to text", "pages/s", "50", "8.33", "10x", "3 to 20", "12x")
    alone = row_of(STAGES[0], [0.5], [], 10.0)
    assert cells(alone) == ("inflate alone", "MB of gzip/s", "20", "", "", "", "")


def test_the_whole_is_told_with_the_memory_of_all_processes():
    ours = [{"clock": 10.0, "cpu": 4.0, "memory": 5e8}, {"clock": 20.0, "cpu": 5.0, "memory": 7e8}]
    theirs = [{"clock": 40.0, "cpu": 20.0, "memory": 9e8}, {"clock": 40.0, "cpu": 40.0, "memory": 8e8}]
    lines = whole_told({"ours": ours, "theirs": theirs}, 700)
    assert lines[0].endswith("700 pages, ours: 15.0 s, 4.5 CPU s, 0.70 GB")
    assert lines[2:] == ["ratio of clock: 3.0 (2.0 to 4.0)", "ratio of cpu: 6.5 (5.0 to 8.0)"]


def test_a_crawl_has_each_page_once_in_one_file_and_in_some(tmp_path):
    pages = tmp_path / "html"
    pages.mkdir()
    for number in range(5):
        (pages / f"{number}.html").write_text(f"<p>page {number}</p>" + " " * SMALLEST, encoding="utf-8")
    crawled(pages, 10, tmp_path / "crawl")

    def urls(folder):
        files = [str(one) for one in sorted((tmp_path / folder).glob("*.warc.gz"))]
        items = [one for piece in plan(files) for one in read(piece)]
        assert all(isinstance(one, Page) for one in items)
        return len(files), sorted(one.metadata["url"] for one in items)

    expected = [f"https://pages.example/{number}.html" for number in range(5)]
    assert urls("one") == (1, expected)
    assert urls("crawl") == (FILES, expected)


def test_a_command_is_watched_with_its_processes(tmp_path):
    inner = "held = bytearray(b'x') * 60_000_000; import time; time.sleep(0.4)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    found = watched([sys.executable, "-c", program], str(tmp_path / "log"))
    assert found["memory"] > 60e6
    assert found["clock"] > 0.4
    assert found["cpu"] > 0
    assert family(2**30) == {2**30}
    left = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.6: pass"
    program = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {left!r}]); time.sleep(0.3)"
    assert watched([sys.executable, "-c", program], str(tmp_path / "log"))["cpu"] > 0.6  # of one that outlives it too
    with pytest.raises(RuntimeError, match="status 3"):
        watched([sys.executable, "-c", "raise SystemExit(3)"], str(tmp_path / "log"))


def test_a_child_that_fails_is_named(tmp_path):
    child = Child(sys.executable, "bench.no_such_module", "part", {}, str(tmp_path / "log"))
    with pytest.raises(RuntimeError, match=r"bench\.no_such_module part ended with status 1"):
        child.turn()


def test_texts_near_limits_are_the_same_each_time():
    found = near_limits()
    assert len(found) > 400
    assert found[:50] == near_limits()[:50]
    assert len(set(found)) == len(found)

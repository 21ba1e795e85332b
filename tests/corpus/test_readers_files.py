"""Which files words mean: patterns, folders, links; and that their order means nothing."""

from __future__ import annotations

import itertools
import os

import pytest

from coretrain.corpus.readers.files import survey
from coretrain.corpus.readers.open import plan, read
from tests.support.crawls import read_all, write
from tests.support.refusal import refused

ROW = b'{"text": "t"}\n'


@pytest.fixture
def tree(tmp_path):
    """Folders with files of some kinds."""
    for name in (
        "a/x.jsonl",
        "a/y.jsonl",
        "a/deep/z.jsonl.gz",
        "b/x.jsonl",
        "b/notes.md",
        "b/.hidden.jsonl",
        "b/w.parquet",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ROW)
    return tmp_path


def names(*words):
    return [file.name for file in survey(words).files]


def test_names_are_below_what_was_given(tree):
    assert names(f"{tree}/a") == ["deep/z.jsonl.gz", "x.jsonl", "y.jsonl"]
    assert names(f"{tree}/a/x.jsonl") == ["x.jsonl"]
    assert names(f"{tree}/a/*.jsonl") == ["x.jsonl", "y.jsonl"]
    assert names(f"{tree}/*/x.jsonl") == ["a/x.jsonl", "b/x.jsonl"]
    assert names(f"{tree}/**/*.jsonl*") == ["a/deep/z.jsonl.gz", "a/x.jsonl", "a/y.jsonl", "b/x.jsonl"]
    assert names("hf:org/name:en") == ["hf:org/name:en"]


def test_files_of_one_name_are_told_apart(tree):
    assert names(f"{tree}/a/x.jsonl", f"{tree}/b/x.jsonl", f"{tree}/a/y.jsonl") == ["a/x.jsonl", "b/x.jsonl", "y.jsonl"]


def test_the_order_of_words_and_doubles_change_nothing(tree):
    words = [f"{tree}/b", f"{tree}/a/*.jsonl", f"{tree}/a/x.jsonl", f"{tree}/a"]
    first = survey(words)
    assert len(first.files) == 5
    for other in itertools.permutations(words):
        assert survey(other).files == first.files
    assert survey([*words, *words]).files == first.files
    assert [one.id for one in read_all(f"{tree}/a/y.jsonl", f"{tree}/a/x.jsonl")] == ["x.jsonl#0", "y.jsonl#0"]


def test_what_is_passed_over_is_counted(tree):
    (tree / "b" / "README").write_text("x")
    (tree / "b" / "index.cdxj").write_text("x")
    (tree / "b" / "settings.json").write_text("x")
    assert dict(survey([f"{tree}/b"]).passed_over) == {".cdxj": 1, ".json": 1, ".md": 1, "without an ending": 1}


def test_linked_folders_are_followed_and_circles_are_not(tree):
    (tree / "c").mkdir()
    os.symlink(tree / "a", tree / "c" / "linked")
    os.symlink(tree / "c", tree / "c" / "round")
    os.symlink(tree / "b" / "x.jsonl", tree / "c" / "one.jsonl")
    assert names(f"{tree}/c") == ["linked/deep/z.jsonl.gz", "linked/x.jsonl", "linked/y.jsonl", "one.jsonl"]
    os.symlink(tree / "a", tree / "whole")
    assert names(f"{tree}/whole") == ["deep/z.jsonl.gz", "x.jsonl", "y.jsonl"]
    assert len(names(f"{tree}/a", f"{tree}/c")) == 4


def test_patterns_do_not_go_round_either(tree):
    """Two links to the folder above: 2 to the power of 40 paths, for who follows them all."""
    for name in ("one", "two"):
        os.symlink(tree / "a", tree / "a" / "deep" / name)
    assert names(f"{tree}/a/**/*.jsonl*") == ["deep/z.jsonl.gz", "x.jsonl", "y.jsonl"]
    assert names(f"{tree}/a/**") == ["deep/z.jsonl.gz", "x.jsonl", "y.jsonl"]
    assert names(f"{tree}/**/deep/*.gz", f"{tree}/**/x.jsonl") == ["a/deep/z.jsonl.gz", "a/x.jsonl", "b/x.jsonl"]
    assert names(f"{tree}/**/[ab]/y.*") == ["a/y.jsonl"]


def test_a_link_to_nothing_is_refused(tree):
    os.symlink(tree / "gone.jsonl", tree / "a" / "to.jsonl")
    with refused("corpus/link-to-nothing", "to.jsonl"):
        survey([f"{tree}/a"])


def test_kinds_that_would_come_twice(tmp_path):
    for name in ("x.warc.gz", "x.warc.wet.gz"):
        (tmp_path / name).write_bytes(b"")
    with refused("corpus/folder-mixes-crawl-files", "warc and wet", "*.warc.gz"):
        survey([str(tmp_path)])
    assert names(f"{tmp_path}/*.warc.gz") == ["x.warc.gz"]
    assert names(f"{tmp_path}/*.wet.gz") == ["x.warc.wet.gz"]


def test_words_that_mean_nothing(tree):
    (tree / "empty").mkdir()
    with refused("corpus/no-input"):
        survey([])
    with refused("corpus/input-not-found", "nowhere.jsonl"):
        survey([f"{tree}/nowhere.jsonl"])
    with refused("corpus/pattern-matches-nothing", "*.warc"):
        survey([f"{tree}/*.warc"])
    with refused("corpus/pattern-matches-nothing", "**"):
        survey([f"{tree}/**/*.warc"])
    with refused("corpus/input-remote", "s3://bucket/x.warc.gz", "hf:NAME"):
        survey(["s3://bucket/x.warc.gz"])
    with refused("corpus/input-empty", "empty"):
        survey([f"{tree}/empty"])
    with refused("corpus/file-kind-unknown", "notes.md", ".parquet"):
        survey([f"{tree}/b/notes.md"])
    for name, words in {"x.arc.gz": "ARC", "x.cdx": ".cdxj"}.items():
        with refused("corpus/file-kind-unknown", name, words):
            survey([write(tree / name, [b""])])
    if os.path.exists("/dev/null"):
        with refused("corpus/input-not-a-file", "/dev/null"):
            survey(["/dev/null"])


def test_a_file_that_is_named_is_read_though_a_folder_passes_it_over(tmp_path):
    word = write(tmp_path / "rows.json", [ROW])
    assert [one.text for one in read_all(word)] == ["t"]


def test_a_file_that_is_gone_meanwhile(tmp_path):
    word = write(tmp_path / "x.jsonl", [ROW])
    (piece,) = plan([word])
    os.remove(word)
    with refused("corpus/file-unreadable", "x.jsonl"):
        list(read(piece))

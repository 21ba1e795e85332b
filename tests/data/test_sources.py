"""Sources: every kind of file gives its documents, and what can't be read is named."""

from __future__ import annotations

import errno
import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.base.errors import UserError
from coretrain.data.rows import open_rows
from coretrain.data.sources import open_source, pieces
from tests.support.corpora import configure, make_texts, quiet, tokens_of
from tests.support.refusal import refused


def texts_from(path: Path | str, field: str = "text") -> list[str]:
    return list(open_source(str(path), field).documents())


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    import zstandard

    texts = [*make_texts(20), "lines\r\nand \u2028 separators"]
    lines = "\n".join(json.dumps({"text": text, "n": 1}) for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines[:500]) + gzip.compress(lines[500:]))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), tmp_path / "a.parquet", row_group_size=7)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert texts_from(tmp_path / name) == texts, name
    assert texts_from(tmp_path) == texts * 4
    mixed = tmp_path / "mixed"
    (mixed / "sub").mkdir(parents=True)
    for name in ("b.txt", "a.md", "sub/c.py", "ignored.bin", ".hidden.txt"):
        (mixed / name).write_text(name)
    assert texts_from(mixed) == ["a.md", "b.txt", "sub/c.py"]


def test_one_text_file_is_cut_into_documents(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {n} " * 20 for n in range(400))
    (tmp_path / "book.txt").write_text(text)
    cut = texts_from(tmp_path / "book.txt")
    assert "".join(cut) == text
    assert len(cut) > 10
    assert all(len(piece) >= 4096 for piece in cut[:-1])
    for odd in ("", "x" * 20_000, "a\n" * 20_000, "\n" * 20_000, ("y" * 9000 + "\n") * 3):
        assert "".join(pieces(odd)) == odd
    assert len(list(pieces("a\n" * 20_000))) > 5


def test_the_standard_library(tmp_path: Path) -> None:
    texts = texts_from("stdlib")
    assert sum(map(len, texts)) > 5e6
    assert any("class JSONDecoder" in text for text in texts)
    assert texts == texts_from("stdlib")
    from pydoc_data.topics import topics

    assert texts[-len(topics) :] == [topics[key] for key in sorted(topics)]
    assert not any("class TestCase_" in text[:2000] for text in texts)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"caf\xe9 " * 10, r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', r"a\.jsonl, line 1: no JSON in UTF-8"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 has no field text, only body: set data\.text_field"),
        ("a.jsonl", b"[1]\n", r"line 1 has no field text"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: field text is no text"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz can't be read"),
        ("a.jsonl.zst", b"no zstd", r"a\.jsonl\.zst can't be read"),
        ("a.parquet", b"no parquet", r"a\.parquet can't be read"),
        ("a.doc", b"x", "unknown kind of file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        texts_from(tmp_path / name)


def test_missing_things_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has no field text, only body, n"):
        texts_from(tmp_path / "a.parquet")
    with refused("data/parquet-field-not-text", "int64"):
        texts_from(tmp_path / "a.parquet", "n")
    with refused("data/source-not-found", "nowhere"):
        texts_from(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with refused("data/folder-without-files", ".txt"):
        texts_from(tmp_path / "empty")
    with refused("data/hf-name-malformed"):
        texts_from("hf:")


def test_a_dataset_streams_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    texts = make_texts(30)
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": texts, "n": range(30)}), tmp_path / "set" / "train-00000-of-00001.parquet")
    assert texts_from(f"hf:{tmp_path / 'set'}") == texts
    assert texts_from(f"hf:{tmp_path / 'set'}::train") == texts
    with pytest.raises(UserError, match="has no field body, only text, n"):
        texts_from(f"hf:{tmp_path / 'set'}", "body")
    with refused("data/hf-source-unreadable"):
        texts_from(f"hf:{tmp_path / 'set'}::test")
    data = quiet(configure(tmp_path, f"hf:{tmp_path / 'set'}"))
    assert data.train.documents + data.validation.documents == 30


def test_without_datasets_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("data/datasets-package-missing"):
        texts_from("hf:some/name")


class OfDatasets(Exception):
    """As `datasets` raises for files that it can't read: neither ValueError nor OSError."""


@pytest.mark.parametrize("error", [RuntimeError("Scripts are no longer run, but found a.py"), OfDatasets(), OSError()])
def test_what_datasets_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    with refused("data/hf-source-unreadable", "hf:some/name", str(error) or type(error).__name__) as caught:
        texts_from("hf:some/name")
    assert "\n" not in str(caught.value)


def test_a_lone_surrogate_is_a_replacement_for_every_tokenizer(tmp_path: Path) -> None:
    texts = [text + " \ud83d\ude00 \ud800 end" for text in make_texts(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    raw = json.dumps({"text": "half: X"}).encode().replace(b"X", b"\xed\xa0\x80")  # as some write it, and json reads it
    (tmp_path / "b.jsonl").write_bytes(raw)
    assert texts_from(tmp_path / "a.jsonl")[0].endswith(" \U0001f600 \ufffd end")
    assert texts_from(tmp_path / "b.jsonl") == ["half: \ufffd"]
    for name, vocab in (("trained", 300), ("bytes", 4096)):
        data = quiet(
            configure(tmp_path, tmp_path / "a.jsonl", **{"data.tokenizer": name, "data.tokenizer_vocab": vocab})
        )
        assert "\ufffd end" in data.tokenizer.decode(tokens_of(data.train))


def test_of_a_folder_nothing_is_passed_over_in_silence(tmp_path: Path) -> None:
    folder = tmp_path / "[a] b%20*?'\n"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in ("sub/B.TXT", "a.md", "c.csv", "d.CSV", "LICENSE", "../elsewhere/e.py", "g.PY"):
        (folder / path).write_text(path * 20)
    (folder / "f.jsonl").write_text(json.dumps({"text": "f" * 200}))
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "round").symlink_to(folder)
    found = open_source(str(folder))
    assert list(found.documents()) == ["a.md" * 20, "f" * 200]
    assert found.passed_over.startswith("7 others in ")
    assert "2 linked folder" in found.passed_over
    assert open_rows(str(folder)).passed_over.startswith("8 others in ")
    assert any(label == "not read" for label, _ in quiet(configure(tmp_path, folder, **{"model.context": 8})).summary())
    (folder / "g.txt").symlink_to("nowhere")
    with refused("data/link-to-nothing", "g.txt"):
        open_source(str(folder))
    with refused("data/source-not-a-file", "/dev/null"):
        open_source("/dev/null")


def test_a_cache_that_cant_be_is_named(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("data/cache-unwritable", "data.cache = /proc/nothing"):
        quiet(configure(tmp_path, corpus, **{"data.cache": "/proc/nothing"}))
    with refused("data/cache-nowhere", "data.cache: ~nobody-here/x"):
        quiet(configure(tmp_path, corpus, **{"data.cache": "~nobody-here/x"}))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with refused("data/cache-unwritable", os.strerror(errno.ENOSPC)):
        quiet(configure(tmp_path, corpus))

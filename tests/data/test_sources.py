"""Sources: every kind of file gives its documents, and what can't be read is named."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.base.errors import UserError
from coretrain.data.sources import open_source, pieces
from tests.support.corpora import configure, make_texts, quiet
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

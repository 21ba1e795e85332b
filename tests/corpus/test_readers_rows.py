"""Rows of published data sets: which field is the text, and what is counted in a row's place."""

from __future__ import annotations

import gzip
import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from coretrain.corpus.document import Document, Trouble
from coretrain.corpus.readers.layouts import LAYOUTS
from coretrain.corpus.readers.open import plan, read
from tests.support.crawls import kinds, read_all, write
from tests.support.refusal import refused

U = "https://a.example/"
ROWS = {
    "pile": ({"text": "T", "meta": {"pile_set_name": "Pile-CC"}}, {"source": "Pile-CC"}),
    "slimpajama": ({"text": "T", "meta": {"redpajama_set_name": "RedPajamaC4"}}, {"source": "RedPajamaC4"}),
    "redpajama-v1": (
        {"text": "T", "meta": {"url": U, "timestamp": "2020", "language": "en"}, "red_pajama_subset": "arxiv"},
        {"url": U, "date": "2020", "source": "arxiv", "language": "en"},
    ),
    "redpajama-v2": (
        {
            "url": U,
            "date_download": "2020",
            "raw_content": "T",
            "source_domain": "a",
            "language_score": 0.9,
            "bucket": "head",
        },
        {"url": U, "date": "2020", "source": "a", "language_score": 0.9, "bucket": "head"},
    ),
    "refinedweb": (
        {"content": "T", "url": U, "timestamp": "2020", "dump": "CC-1", "segment": "s", "image_urls": []},
        {"url": U, "date": "2020", "source": "CC-1"},
    ),
    "fineweb": (
        {"text": "T", "id": "i", "dump": "CC-1", "url": U, "file_path": "s3:", "language": "en", "language_score": 0.7},
        {"url": U, "source": "CC-1", "source_id": "i", "language": "en", "language_score": 0.7},
    ),
    "fineweb-edu": (
        {"text": "T", "id": "i", "dump": "CC-1", "url": U, "file_path": "s3:", "score": 3.2, "int_score": 3},
        {"url": U, "source": "CC-1", "source_id": "i", "edu_score": 3.2},
    ),
    "fineweb-2": (
        {"text": "T", "id": "i", "dump": "CC-1", "url": U, "language_script": "Latn", "minhash_cluster_size": 4},
        {"url": U, "source": "CC-1", "source_id": "i", "script": "Latn", "cluster_size": 4},
    ),
    "dclm": (
        {"text": "T", "url": U, "language_id_whole_page_fasttext": {"en": 0.9}, "metadata": {"WARC-Date": "2020"}},
        {"url": U, "date": "2020"},
    ),
    "dolma": (
        {"id": "i", "text": "T", "source": "wiki", "added": "2023", "created": "2020", "metadata": {"url": U}},
        {"source_id": "i", "source": "wiki", "date": "2020", "url": U},
    ),
    "c4": ({"text": "T", "timestamp": "2020", "url": U}, {"url": U, "date": "2020"}),
    "text": ({"text": "T", "url": U, "extra": [1]}, {"url": U}),
}


def lines(*rows):
    """Rows as a .jsonl file has them."""
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def test_every_layout_has_a_row_here():
    assert set(ROWS) == set(LAYOUTS)


@pytest.mark.parametrize("layout", ROWS)
def test_a_layout_is_known_by_its_fields(tmp_path, layout):
    row, metadata = ROWS[layout]
    word = write(tmp_path / "x.jsonl", [lines(row, row)])
    (piece,) = plan([word])
    assert piece.layout == layout
    first = next(iter(read(piece)))
    assert first == Document("x.jsonl#0", "T", {**metadata, "file": "x.jsonl", "offset": 0})
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "x.parquet")
    (piece,) = plan([str(tmp_path / "x.parquet")])
    assert piece.layout == layout
    assert next(iter(read(piece))) == Document("x.parquet#0", "T", {**metadata, "file": "x.parquet", "offset": 0})


def test_an_object_that_is_written_as_text(tmp_path):
    row = {"text": "T", "meta": json.dumps({"pile_set_name": "Books3"})}
    (found,) = read_all(write(tmp_path / "x.jsonl", [lines(row)]))
    assert found.metadata["source"] == "Books3"
    v2 = {"raw_content": "T", "doc_id": "d", "meta": json.dumps({"url": U, "language": "fr"}), "quality_signals": "{}"}
    (found,) = read_all(write(tmp_path / "y.jsonl", [lines(v2)]))
    assert {key: found.metadata[key] for key in ("url", "language", "source_id")} == {
        "url": U,
        "language": "fr",
        "source_id": "d",
    }


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".ndjson"])
def test_packed_lines_give_the_same(tmp_path, ending):
    raw = b"\xef\xbb\xbf" + lines(*({"text": f"row {number} \u00e9"} for number in range(300)))
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(ending[-3:] if "gz" in ending else ending[-4:], bytes)
    cut = raw.index(b"\n", 2000) + 1
    path = tmp_path / f"x{ending}"
    found = read_all(write(path, [pack(raw[:cut]), pack(raw[cut:])]))
    assert [one.text for one in found] == [f"row {number} \u00e9" for number in range(300)]
    assert [one.metadata["offset"] for one in found[1:]] == [at + 1 for at in range(len(raw) - 1) if raw[at] == 10]
    if pack is not bytes:
        broken = read_all(write(path, [pack(raw)[:-30]]), layout="text")
        last = broken.pop()
        assert isinstance(last, Trouble)
        assert last.kind == "truncated"
        assert broken == found[: len(broken)]


def test_rows_that_are_none_are_counted_with_their_place(tmp_path):
    rows = [
        {"text": "a"},
        "{broken",
        '{"text": "\\ud800"}',
        [1],
        {"other": 1},
        {"text": None},
        {"text": 5},
        {"text": ""},
    ]
    raw = lines(*rows)
    found = read_all(write(tmp_path / "x.jsonl", [raw, b'{"text": "\xff"}\n', b"[" * 5000 + b"\n"]))
    assert [one.text for one in found if isinstance(one, Document)] == ["a", "\ufffd", ""]
    starts = [sum(len(lines(row)) for row in rows[:number]) for number in range(len(rows))]
    troubles = [(one.kind, one.offset) for one in found if isinstance(one, Trouble)]
    assert troubles[:5] == [
        ("bad-json", starts[1]),
        ("bad-row", starts[3]),
        *(("no-text", starts[number]) for number in (4, 5, 6)),
    ]
    assert [kind for kind, _ in troubles[5:]] == ["bad-json", "bad-json"]


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("coretrain.corpus.readers.rows.LONGEST_LINE", 5000)
    monkeypatch.setattr("coretrain.corpus.readers.window.BLOCK", 100)
    rows = [{"text": "a"}, {"text": "b" * 6000}, {"text": "c"}]
    word = write(tmp_path / "x.jsonl", [lines(*rows)])
    found = read_all(word)
    assert kinds(found) == {"Document": 2, "too-large": 1}
    assert [one.text for one in found if isinstance(one, Document)] == ["a", "c"]
    assert read_all(word, piece_bytes=1000) == found


def test_other_fields_are_refused_with_their_names(tmp_path):
    word = write(tmp_path / "x.jsonl", [lines({"body": "b", "title": "t"})])
    with refused("corpus/layout-not-recognised", "x.jsonl", "body", "title", "field:NAME"):
        plan([word])
    assert [one.text for one in read_all(word, layout="field:body")] == ["b"]
    with refused("corpus/layout-other", "content", "body"):
        plan([word], layout="refinedweb")
    with refused("corpus/layout-unknown", "did you mean refinedweb?", "fineweb-2"):
        plan([word], layout="refindweb")
    pq.write_table(pa.table({"body": ["b"], "n": [1]}), tmp_path / "x.parquet")
    with refused("corpus/layout-not-recognised", "x.parquet", "body"):
        plan([str(tmp_path / "x.parquet")])
    with refused("corpus/no-rows", "y.jsonl"):
        plan([write(tmp_path / "y.jsonl", [b"{broken\n"])])
    assert plan([write(tmp_path / "z.jsonl", [])]) == []


def test_a_file_that_is_no_table(tmp_path):
    with refused("corpus/not-parquet", "x.parquet"):
        plan([write(tmp_path / "x.parquet", [b"PAR1 nothing"])])


def test_rows_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, subset, split, streaming):
        asked.append((path, subset, split, streaming))
        if path == "no/such":
            raise RuntimeError("no such data set.")
        return iter([{"text": "a", "timestamp": "t", "url": U}, {"text": None}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = read_all("hf:org/name:en")
    assert found[0] == Document("hf:org/name:en#0", "a", {"url": U, "date": "t", "file": "hf:org/name:en", "offset": 0})
    assert kinds(found) == {"Document": 1, "no-text": 1}
    assert asked == [("org/name", "en", "train", True)]
    with refused("corpus/hub-unreadable", "hf:no/such", "no such data set;"):
        read_all("hf:no/such")
    with refused("corpus/hub-name-malformed", "hf:"):
        read_all("hf:")
    with refused("corpus/layout-other", "content"):
        read_all("hf:org/name", layout="refinedweb")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused("corpus/datasets-package-missing", "twintrain[datasets]"):
        read_all("hf:org/name")

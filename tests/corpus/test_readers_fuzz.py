"""Files of crawls and of rows that few expect: read as far as they go, or refused in a sentence.

However they are damaged, their pieces give what they give whole.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from coretrain.corpus.demo import answers, records
from coretrain.corpus.document import Page
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.readers.members import GZIP, STEP, Packing, gzip_members
from coretrain.corpus.readers.open import plan, read
from coretrain.corpus.readers.piece import END
from coretrain.corpus.readers.warc import packed_records
from coretrain.corpus.readers.window import Window
from tests.support.crawls import pages
from tests.support.fuzzing import as_json, damaged, ends_well, fuzzed, mutated, mutated_bytes, replaced

LAYOUT = {"text": "t", "meta": {"pile_set_name": "x"}, "url": "u"}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A file of each kind, by its name's end."""
    folder = tmp_path_factory.mktemp("files")
    parts = [
        records.info("x"),
        *pages(3),
        records.conversion("https://a.example/1", "text"),
        records.links("https://a.example/2", "title", ["/b"]),
        records.response(
            "https://a.example/3", records.chunked(gzip.compress(b"<p>x", mtime=0)), {"Content-Encoding": "gzip"}
        ),
    ]
    rows = b"".join(json.dumps(LAYOUT | {"text": f"text {number}"}).encode() + b"\n" for number in range(9))
    place = {"filename": "x.warc.gz", "offset": "0", "length": "400"}
    contents = {
        "x.warc": b"".join(parts),
        "x.warc.gz": b"".join(map(records.member, parts)),
        "x.warc.zst": b"".join(map(zstandard.compress, parts)),
        "whole.warc.gz": gzip.compress(b"".join(parts), mtime=0),
        "x.jsonl": rows,
        "x.jsonl.gz": gzip.compress(rows, mtime=0),
        "x.jsonl.zst": zstandard.compress(rows),
        "x.cdxj": b"".join(b"com,a)/ 2026 " + json.dumps(place).encode() + b"\n" for _ in range(4)),
    }
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)
    pq.write_table(pa.Table.from_pylist([LAYOUT] * 20), folder / "x.parquet", row_group_size=6)
    return {path.name: path for path in folder.iterdir()}


def reads(path, size):
    """Read a file whole and in pieces, which must give the same."""

    def do():
        whole = [one for piece in plan([str(path)]) for one in read(piece)]
        assert [one for piece in plan([str(path)], piece_bytes=size) for one in read(piece)] == whole

    return do


CRAWLS = ("x.warc", "x.warc.gz", "x.warc.zst", "whole.warc.gz")


@fuzzed(30)
def test_crawls(files, random):
    path = files[random.choice(CRAWLS)]
    raw = path.read_bytes()
    for _ in range(random.choice((0, 1, 3))):  # also where their ends are, and what lies between them
        raw = mutated_bytes(random, raw)
    with replaced(path, mutated_bytes(random, raw)):
        ends_well(path.name, reads(path, random.randrange(1, len(raw) + 2)))


@fuzzed(30)
def test_what_unpacks_twice_as_fast_says_the_same(files, random):
    """Of damaged members too: what isal doesn't get through is zlib's to judge."""
    pytest.importorskip("isal")
    raw = files["x.warc.gz"].read_bytes()
    for _ in range(random.choice((0, 1, 2))):
        raw = mutated_bytes(random, raw)
    either = []
    for packing in (gzip_members(), Packing("gzip", GZIP, STEP, lambda: zlib.decompressobj(31))):
        window = Window(io.BytesIO(raw).read)
        items = list(packed_records(window, END, "x", packing))
        either.append((items, window.at))
    assert either[0] == either[1]


@fuzzed(15)
def test_rows(files, random):
    path = files[random.choice(("x.jsonl", "x.jsonl.gz", "x.jsonl.zst", "x.parquet"))]
    raw = damaged(random, path) if path.name == "x.jsonl" else mutated_bytes(random, path.read_bytes())
    with replaced(path, raw):
        ends_well(path.name, reads(path, random.randrange(1, 500)))


@fuzzed(8)
def test_indexes(files, random):
    path = files["x.cdxj"]
    lines = [mutated(random, {"filename": "x.warc.gz", "offset": "0", "length": 400}) for _ in range(3)]
    raw = b"".join(b"a 1 " + as_json(line) + b"\n" for line in lines)
    with replaced(path, raw if random.random() < 0.7 else mutated_bytes(random, path.read_bytes())):
        ends_well(path.name, reads(path, 64))


@fuzzed(8)
def test_pages(random):
    body = b"<html><head><meta charset='shift_jis'></head><p>one</p><table><td>\x83\x65\x83\x58</table></html>"
    page = Page("1", mutated_bytes(random, body), random.choice(("", "utf-8", "shift_jis", "\0", "x" * 999, "utf-16")))
    ends_well("page", lambda: Extractor().document(page).text.encode())


@fuzzed(3)
def test_answers(tmp_path_factory, random):
    folder = tmp_path_factory.mktemp("answers")
    plant = answers.Plant("1", "u", "k", "kept")
    answers.save(folder, answers.DemoAnswers(("a",), ("b",), ("c",), "d", 1, (plant,)))
    path = folder / answers.NAME
    with replaced(path, damaged(random, path)):
        ends_well("answers.json", lambda: answers.load(folder))

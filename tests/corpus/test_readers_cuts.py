"""However a file is cut, its pieces give what the file whole gives: nothing lost, doubled or moved."""

from __future__ import annotations

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from coretrain.corpus.demo import records
from coretrain.corpus.document import Trouble
from coretrain.corpus.readers.open import plan, read
from coretrain.corpus.readers.piece import Piece
from tests.support.crawls import html, kinds, read_all, urls, write
from tests.support.refusal import refused

PACKED = {
    "x.warc": bytes,
    "x.warc.gz": records.member,
    "x.warc.zst": zstandard.compress,
}


def crawl(dice: random.Random, name: str) -> list[bytes]:
    """Records of all kinds and sizes, a third of them damaged in some way."""
    parts = [PACKED[name](records.info(name))]
    for number in range(30):
        url = f"https://site.example/{number}"
        kind = dice.choice(["request", "page", "page", "page", "conversion", "picture"])
        record = {
            "request": records.request(url),
            "page": records.response(url, html(number, dice.choice([50, 500, 5000]))),
            "conversion": records.conversion(url, f"WARC/1.0 of {number}\r\n\r\nWARC/1.0\r\n"),
            "picture": records.response(url, bytes(dice.choices(range(256), k=300)), {"Content-Type": "image/png"}),
        }[kind]
        part = PACKED[name](record)
        place, harm = dice.randrange(len(part)), dice.choice(["cut", "flip", "more", "", "", "", "", "", ""])
        if harm == "cut":
            part = part[:place]
        elif harm == "flip":
            part = part[:place] + bytes([part[place] ^ 0xFF]) + part[place + 1 :]
        elif harm == "more":
            part += part[place : place + 20]
        parts.append(part)
    return parts


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_a_damaged_crawl(tmp_path, name, seed):
    dice = random.Random(seed)
    parts = crawl(dice, name)
    word = write(tmp_path / name, parts)
    size = sum(map(len, parts))
    (whole,) = plan([word])
    assert (whole.start, whole.end) == (0, size)
    expected = list(read(whole))
    assert len(expected) > 15
    for piece_bytes in [1, 7, 100, *(dice.randrange(1, size) for _ in range(8))]:
        pieces = plan([word], piece_bytes=piece_bytes)
        assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
        assert pieces[-1].end == size
        assert [one for piece in pieces for one in read(piece)] == expected, piece_bytes


def test_every_record_can_begin_a_piece(tmp_path):
    parts = [records.member(records.response(f"https://site.example/{n}", html(n))) for n in range(9)]
    word = write(tmp_path / "x.warc.gz", parts)
    starts = [sum(map(len, parts[:number])) for number in range(9)]
    assert [piece.start for piece in plan([word], piece_bytes=1)] == starts
    assert [urls(read(piece)) for piece in plan([word], piece_bytes=1)] == [[str(number)] for number in range(9)]


def test_a_piece_ends_before_a_record_that_begins_at_its_end(tmp_path):
    """Off by one here, and a record is read twice, or by nobody."""
    parts = [records.response(f"https://site.example/{n}", html(n)) for n in range(4)]
    word = write(tmp_path / "x.warc", parts)
    cut = len(parts[0]) + len(parts[1])
    for piece_bytes, first in [(cut - 1, "01"), (cut, "01"), (cut + 1, "012")]:
        assert "".join(urls(read(plan([word], piece_bytes=piece_bytes)[0]))) == first


def test_a_packed_crawl_inside_a_crawl_is_told(tmp_path):
    """A page that is a WARC file itself, which gzip stores as it is: a cut may fall on one of its records."""
    inner = b"".join(records.member(records.response(f"https://inner.example/{n}", html(n, 4000))) for n in range(9))
    outer = records.member(records.response("https://site.example/w", inner, {"Content-Type": "application/warc"}))
    word = write(tmp_path / "x.warc.gz", [outer, records.member(records.response("https://site.example/1", html(1)))])
    assert kinds(read_all(word)) == {"not-html": 1, "Page": 1}
    if b"\x1f\x8b\x08" in outer[10:]:
        assert "overlap" in kinds(read_all(word, piece_bytes=len(outer) // 3))


LINES = [b'{"text": "one"}', b"", b'{"text": "two\\nlines"}', b"  ", '{"text": "gr\u00fcn"}'.encode(), b'{"text": "4"}']


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_pieces_of_lines(tmp_path, end, last):
    whole = end.join(LINES) + last
    word = write(tmp_path / "x.jsonl", [whole])
    expected = read_all(word)
    assert [one.text for one in expected] == ["one", "two\nlines", "gr\u00fcn", "4"]
    assert [one.id for one in expected] == [f"x.jsonl#{whole.index(line)}" for line in LINES if line.strip()]
    for piece_bytes in range(1, len(whole) + 2):
        pieces = plan([word], piece_bytes=piece_bytes)
        assert [one for piece in pieces for one in read(piece)] == expected, piece_bytes
        assert sum(piece.end - piece.start for piece in pieces) == len(whole)
    assert len(plan([word], piece_bytes=1)) >= 4


def test_pieces_of_a_table(tmp_path):
    table = pa.table({"text": [f"text {number}" for number in range(50)], "url": ["u"] * 50, "other": [1.0] * 50})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    word = str(tmp_path / "x.parquet")
    (whole,) = plan([word])
    expected = list(read(whole))
    assert [(one.id, one.text) for one in expected] == [(f"x.parquet#{n}", f"text {n}") for n in range(50)]
    assert expected[3].metadata == {"url": "u", "file": "x.parquet", "offset": 3}
    for piece_bytes in (1, 300, 700, 1500):
        pieces = plan([word], piece_bytes=piece_bytes)
        assert [one for piece in pieces for one in read(piece)] == expected
    assert len(plan([word], piece_bytes=1)) == 8


def test_a_damaged_row_group_is_counted_and_the_next_ones_come(tmp_path):
    table = pa.table({"text": [f"text {number} {'x' * 40}" for number in range(40)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10, compression="gzip", use_dictionary=False)
    raw = bytearray((tmp_path / "x.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(1).column(0)
    behind = column.data_page_offset + column.total_compressed_size
    raw[behind - 30 : behind - 12] = b"\xff" * 18
    found = read_all(write(tmp_path / "x.parquet", [bytes(raw)]))
    assert kinds(found) == {"Document": 30, "damaged": 1}
    (trouble,) = [one for one in found if isinstance(one, Trouble)]
    assert trouble.offset == 10
    assert "10 rows" in trouble.words
    assert [one.metadata["offset"] for one in found if not isinstance(one, Trouble)] == [*range(10), *range(20, 40)]
    assert read_all(str(tmp_path / "x.parquet"), piece_bytes=1) == found


def test_a_piece_is_json_and_back(tmp_path):
    word = write(tmp_path / "x.jsonl", [b'{"text": "a"}\n{"text": "b"}\n'])
    for piece in plan([word], piece_bytes=10):
        assert Piece.from_dict(json.loads(json.dumps(piece.to_dict()))) == piece
    said = piece.to_dict()
    for odd in ({**said, "start": "0"}, {**said, "more": 1}, {key: said[key] for key in said if key != "end"}):
        with refused("corpus/piece-malformed"):
            Piece.from_dict(odd)
    with refused("corpus/piece-kind-unknown", "novel"):
        list(read(Piece.from_dict({**said, "kind": "novel"})))
    with refused("corpus/piece-size", "0"):
        plan([word], piece_bytes=0)

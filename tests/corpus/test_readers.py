"""WARC, WET, WAT and their index: what records give, and what is counted in their place."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
import zstandard
from fastwarc.stream_io import BrotliWriter

from coretrain.corpus.demo import records
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.readers.http import BodyError, whole_body
from coretrain.corpus.readers.open import plan, read
from tests.support.crawls import html, kinds, pages, read_all, urls, write
from tests.support.refusal import refused

URL = "https://site.example/a"


def one(tmp_path, record):
    """What a file with this record gives."""
    return read_all(write(tmp_path / "x.warc.gz", [records.member(records.info("x")), records.member(record)]))


def test_a_page_has_what_its_record_says(tmp_path):
    first, second = records.member(records.info("x.warc.gz")), records.member(records.request(URL))
    body = html(1)
    said = {"Content-Type": 'Text/HTML; charset="ISO-8859-1"', "Server": "x"}
    page = records.member(records.response(URL, body, said))
    (found,) = read_all(write(tmp_path / "x.warc.gz", [first, second, page]))
    assert isinstance(found, Page)
    assert found.id == records.record_id("response", URL)
    assert (found.body, found.charset, found.media_type) == (body, "iso-8859-1", "text/html")
    offset = len(first) + len(second)
    assert found.metadata == {"url": URL, "date": records.DATE, "file": "x.warc.gz", "offset": offset}


def test_text_of_a_wet_file(tmp_path):
    words = "Zwei Zeilen\nund ein Fuß\n"
    found = read_all(write(tmp_path / "x.warc.wet.gz", [records.member(records.conversion(URL, words))]))
    assert [type(each) for each in found] == [Document]
    assert found[0].text == "Zwei Zeilen\nund ein Fuß"
    assert found[0].metadata["url"] == URL
    assert found[0].metadata["refers_to"] == records.record_id("response", URL)


def test_a_wat_file_gives_what_describes_a_page(tmp_path):
    said = records.links(URL, "A title", ["/b", "/c", "/d"])
    (found,) = read_all(write(tmp_path / "x.warc.wat.gz", [records.member(said)]))
    assert found.text == ""
    assert {key: found.metadata[key] for key in ("url", "title", "links", "status")} == {
        "url": URL,
        "title": "A title",
        "links": 3,
        "status": "200",
    }
    broken = records.record("metadata", URL, b'{"Envelope": 5}', "application/json")
    assert kinds(one(tmp_path, broken)) == {"bad-json": 1}


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (records.response(URL, b"x", {"Content-Type": "image/png"}), "not-html"),
        (records.response(URL, b"\x89PNG\r\n\x1a\n\0\0", {"Content-Type": "text/html"}), "not-html"),
        (records.response(URL, b"%PDF-1.4 ...", {"Content-Type": "text/html"}), "not-html"),
        (records.response(URL, b"<p>x", status="404 Not Found"), "status"),
        (records.response(URL, b"<p>x", status="301 Moved"), "status"),
        (records.response(URL, b" \n"), "empty"),
        (records.record("response", URL, b"\0\1\2", "application/http"), "bad-http"),
        (records.record("response", "dns:site.example", b"20260101 1.2.3.4", "text/dns"), "bad-http"),
        (records.record("revisit", URL, b"HTTP/1.1 304 Not Modified\r\n\r\n", "application/http"), "revisit"),
        (records.record("continuation", URL, b"x", "application/http"), "continuation"),
        (records.record("novelty", URL, b"x", "text/plain"), "unknown-record"),
        (records.record("resource", URL, b"x", "image/gif"), "not-html"),
    ],
)
def test_what_is_no_page_is_counted_with_its_place(tmp_path, record, kind):
    (found,) = one(tmp_path, record)
    assert isinstance(found, Trouble)
    assert (found.kind, found.file, found.offset) == (kind, "x.warc.gz", len(records.member(records.info("x"))))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n<p>x",
        b"HTTP/2 200\r\ncontent-type: text/html; charset=utf-8\r\n\r\n<p>x",
        b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n<p>x",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html, text/html; charset=utf-8\r\n\r\n<p>x",
        b"HTTP/1.1 203 Changed\r\nContent-Type: TEXT/HTML;charset=\r\nX: \xff\r\n folded\r\nY\r\n\r\n<p>x",
        b"HTTP/1.1 200\r\nContent-Type: application/xhtml+xml\r\n\r\n<p>x",
    ],
)
def test_answers_of_odd_servers_are_pages(tmp_path, answer):
    (found,) = one(tmp_path, records.record("response", URL, answer, "application/http; msgtype=response"))
    assert isinstance(found, Page)
    assert found.body == b"<p>x"


def test_what_was_stored_without_a_server_is_a_page_too(tmp_path):
    (found,) = one(tmp_path, records.record("resource", URL, b"<p>x", "text/html; charset=latin1"))
    assert isinstance(found, Page)
    assert (found.body, found.charset) == (b"<p>x", "latin1")


def test_a_type_that_the_crawler_found_counts_more_than_what_the_server_says(tmp_path):
    more = {"WARC-Identified-Payload-Type": "text/html"}
    assert kinds(one(tmp_path, records.response(URL, b"<p>x", {"Content-Type": "x/y"}, more=more))) == {"Page": 1}
    more = {"WARC-Identified-Payload-Type": "image/gif"}
    assert kinds(one(tmp_path, records.response(URL, b"<p>x", more=more))) == {"not-html": 1}


def test_a_page_cut_by_the_crawler_says_so(tmp_path):
    (found,) = one(tmp_path, records.response(URL, b"<p>half a pa", more={"WARC-Truncated": "length"}))
    assert found.metadata["truncated"] == "length"


def brotli(body):
    """A body packed as `br`."""
    target = io.BytesIO()
    with BrotliWriter(target) as packer:
        packer.write(body)
    return target.getvalue()


BODY = b"<p>" + bytes(range(48, 120)) * 40


@pytest.mark.parametrize(
    ("sent", "transfer", "content"),
    [
        (BODY, "", ""),
        (BODY, "identity", "identity"),
        (records.chunked(BODY, 7), "chunked", ""),
        (records.chunked(BODY, 7).replace(b"\r\n0\r\n\r\n", b"\r\n0;x=y\r\nA: b\r\n\r\n"), "Chunked", ""),
        (records.chunked(gzip.compress(BODY, mtime=0)), "gzip, chunked", "gzip"),
        (gzip.compress(BODY, mtime=0), "", "GZIP"),
        (gzip.compress(BODY, mtime=0), "", "x-gzip"),
        (zlib.compress(BODY), "", "deflate"),
        (records.deflated(BODY), "", "deflate"),
        (brotli(BODY), "", "br"),
        (zstandard.compress(BODY), "", "zstd"),
        (gzip.compress(zlib.compress(BODY), mtime=0), "", "deflate, gzip"),
        (BODY, "chunked", ""),
        (BODY, "", "gzip"),
        (BODY, "", "deflate"),
        (BODY, "", "br"),
        (BODY, "chunked", "gzip"),
    ],
)
def test_bodies_as_they_were_meant(sent, transfer, content):
    assert whole_body(sent, transfer, content) == BODY


@pytest.mark.parametrize(
    ("sent", "transfer", "content", "kind"),
    [
        (records.chunked(BODY)[:-20], "chunked", "", "bad-chunk"),
        (records.chunked(BODY, 500).replace(b"\r\n1f4\r\n", b"\r\nxyz\r\n", 1), "chunked", "", "bad-chunk"),
        (gzip.compress(BODY, mtime=0)[:-1], "", "gzip", "bad-compression"),
        (gzip.compress(BODY, mtime=0)[:12] + b"\xff" * 9, "", "gzip", "bad-compression"),
        (zlib.compress(BODY)[:-1], "", "deflate", "bad-compression"),
        (b"\xff" * 9, "", "br", "bad-compression"),
        (b"\xff" * 9, "", "zstd", "bad-compression"),
        (brotli(BODY)[:-9], "", "br", "bad-compression"),
        (zstandard.compress(BODY)[:-9], "", "zstd", "bad-compression"),
        (BODY, "", "rot13", "bad-compression"),
    ],
)
def test_bodies_that_broke_on_the_way(sent, transfer, content, kind):
    with pytest.raises(BodyError) as caught:
        whole_body(sent, transfer, content)
    assert caught.value.kind == kind


def test_a_body_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr("coretrain.corpus.readers.http.LARGEST", 1000)
    for coding, packed in [("gzip", gzip.compress(bytes(1001), mtime=0)), ("br", brotli(bytes(1001)))]:
        with pytest.raises(BodyError, match="1000 bytes"):
            whole_body(packed, "", coding)
    assert whole_body(gzip.compress(bytes(1000), mtime=0), "", "gzip") == bytes(1000)


def packed(form):
    """Records packed one by one, as this form has them."""
    return {
        "plain": pages(5),
        "gzip": [records.member(page) for page in pages(5)],
        "zstd": [zstandard.compress(page) for page in pages(5)],
    }[form]


ENDINGS = {"plain": "x.warc", "gzip": "x.warc.gz", "zstd": "x.warc.zst"}


@pytest.mark.parametrize("form", ENDINGS)
def test_damage_takes_one_record_and_the_next_ones_come(tmp_path, form):
    parts = packed(form)
    place = len(parts[0]) + len(parts[1])
    word = str(tmp_path / ENDINGS[form])
    sound = read_all(write(tmp_path / ENDINGS[form], parts))
    assert urls(sound) == list("01234")
    begin, middle = parts[2][:2], len(parts[2]) // 2
    for damaged in (
        b"\0\0" + parts[2][len(begin) :],  # no beginning
        parts[2][:-30],  # the end is missing, and with it the rest of the length
        parts[2][40:],
        parts[2][:middle] + b"\0" * 30 + parts[2][middle + 90 :],
        b"nothing like a record",
    ):
        write(tmp_path / ENDINGS[form], [*parts[:2], damaged, *parts[3:]])
        found = read_all(word)
        assert urls(found) == list("0134"), damaged
        assert [(each.kind, each.offset) for each in found if isinstance(each, Trouble)] == [("damaged", place)]
        assert [each for each in found if isinstance(each, Page)][:2] == sound[:2]


@pytest.mark.parametrize("form", ENDINGS)
def test_a_file_that_ends_within_a_record(tmp_path, form):
    parts = packed(form)
    for cut in (10, len(parts[4]) // 2, len(parts[4]) - 7):
        found = read_all(write(tmp_path / ENDINGS[form], [*parts[:4], parts[4][:cut]]))
        assert urls(found) == list("0123")
        (trouble,) = [each for each in found if isinstance(each, Trouble)]
        assert (trouble.offset, trouble.file) == (sum(map(len, parts[:4])), ENDINGS[form])
        assert trouble.kind == "truncated" or (form == "plain" and cut == 10)


def test_two_bytes_of_a_checksum_are_damage_too(tmp_path):
    parts = packed("gzip")
    parts[3] = parts[3][:-6] + b"\0\0" + parts[3][-4:]
    assert kinds(read_all(write(tmp_path / "x.warc.gz", parts))) == {"Page": 4, "damaged": 1}


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_file_that_is_packed_as_one(tmp_path, form):
    """It is read whole, and until where it breaks."""
    whole = b"".join(pages(9, 40_000))
    raw = gzip.compress(whole, mtime=0) if form == "gzip" else zstandard.compress(whole)
    path = tmp_path / ENDINGS[form]
    (piece,) = plan([write(path, [raw])], piece_bytes=100)
    assert piece.packing == f"{form}-stream"
    assert urls(read(piece)) == list("012345678")
    found = read_all(write(path, [raw[: len(raw) * 2 // 3]]))
    last = found.pop()
    assert isinstance(last, Trouble)
    assert last.kind in ("truncated", "damaged")
    assert urls(found) == list("012345678")[: len(found)]
    assert 3 <= len(found) < 9


def test_several_records_in_a_member(tmp_path):
    """Records that were packed a few at a time, behind one that stands alone."""
    a, b, c, d = pages(4)
    word = write(tmp_path / "x.warc.gz", [records.member(a), records.member(b + c), records.member(d)])
    assert urls(read_all(word)) == list("0123")
    assert read_all(word, piece_bytes=50) == read_all(word)


def test_a_dictionary_at_the_head_of_a_zstd_file(tmp_path):
    raw = b"".join(pages(3))[:900]
    trained = zstandard.ZstdCompressionDict(raw)
    packer = zstandard.ZstdCompressor(dict_data=trained)
    frames = [packer.compress(page) for page in pages(5)]
    for stored in (raw, zstandard.compress(raw)):
        head = b"\x5d\x2a\x4d\x18" + len(stored).to_bytes(4, "little") + stored
        word = write(tmp_path / "x.warc.zst", [head, *frames])
        assert urls(read_all(word)) == list("01234")
        assert read_all(word, piece_bytes=300) == read_all(word)
        assert len(plan([word], piece_bytes=300)) > 2


def test_a_record_that_is_too_large_is_passed_over(tmp_path, monkeypatch):
    for module in ("members", "warc"):
        monkeypatch.setattr(f"coretrain.corpus.readers.{module}.LARGEST", 5000)
    monkeypatch.setattr("coretrain.corpus.readers.members.Packing.unpack.__defaults__", (5000,))
    large = records.response(URL, html(7, 9000))
    a, b = pages(2)
    for name, parts in {"x.warc": [a, large, b], "x.warc.gz": map(records.member, [a, large, b])}.items():
        found = read_all(write(tmp_path / name, parts))
        assert urls(found) == ["0", "1"]
        assert kinds(found) == {"Page": 2, "too-large": 1}


def test_a_page_that_shows_a_record_is_no_record(tmp_path):
    """A page about WARC, in a file that isn't packed, with a broken record before it."""
    example = b"<pre>\r\n\r\nWARC/1.0\r\nWARC-Type: response\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\n\r\n</pre>"
    about = records.response("https://site.example/about", example * 3)
    a, b = pages(2)
    word = write(tmp_path / "x.warc", [a, b"WARC/1.0\r\nbroken\r\n\r\n", about, b])
    assert urls(read_all(word)) == ["0", "about", "1"]
    for size in range(1, len(a) + len(about), 50):
        assert read_all(word, piece_bytes=size) == read_all(word)


def test_files_that_are_no_warc(tmp_path):
    for name, raw in {
        "a.warc": b"",
        "b.warc.gz": gzip.compress(b"<html>", mtime=0),
        "c.warc": b"<html>",
        "d.warc.gz": b"\0" * 99,
    }.items():
        with refused("corpus/not-a-warc", name):
            plan([write(tmp_path / name, [raw])])


def test_an_index_names_the_records_to_read(tmp_path):
    parts = [records.member(page) for page in pages(6)]
    starts = [sum(map(len, parts[:number])) for number in range(6)]
    write(tmp_path / "x.warc.gz", parts)
    (tmp_path / "deep").mkdir()
    lines = [
        f'com,a)/ 2026 {{"url": "u", "filename": "x.warc.gz", "offset": "{starts[4]}", "length": "{len(parts[4])}"}}',
        "no line at all",
        f'com,a)/ 2026 {{"filename": "crawl/seg/x.warc.gz", "offset": {starts[1]}, "length": {len(parts[1])}}}',
        f'com,a)/ 2026 {{"filename": "x.warc.gz", "offset": "{starts[2]}", "length": "60"}}',
        'com,a)/ 2026 {"filename": "x.warc.gz", "offset": "99999999", "length": "60"}',
    ]
    index = write(tmp_path / "some.cdxj", ["\n".join(lines).encode()])
    found = read_all(index)
    assert urls(found) == ["4", "1"]
    whole = {each.id: each for each in read_all(str(tmp_path / "x.warc.gz"))}
    assert [each for each in found if isinstance(each, Page)] == [
        whole[each.id] for each in found if isinstance(each, Page)
    ]
    troubles = [(each.kind, each.offset) for each in found if isinstance(each, Trouble)]
    assert troubles == [("bad-line", len(lines[0]) + 1), ("truncated", starts[2]), ("truncated", 99999999)]
    assert read_all(index, piece_bytes=64) == found
    missing = write(tmp_path / "other.cdxj", [b'a 1 {"filename": "y.warc.gz", "offset": 0, "length": 9}\n'])
    with refused("corpus/index-file-missing", "y.warc.gz", "other.cdxj"):
        read_all(missing)
    outside = write(tmp_path / "deep" / "o.cdxj", [b'a 1 {"filename": "../x.warc.gz", "offset": 0, "length": 9}\n'])
    with refused("corpus/index-file-missing", "x.warc.gz"):
        read_all(outside)

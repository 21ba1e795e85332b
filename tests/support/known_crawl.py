"""What readers and extraction give of some small files, each fact by a name: planted bugs must change one of them.

Modules are imported inside the functions, since a planted bug is in a fresh copy of them.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

ROOMS = ("coretrain.corpus.readers", "coretrain.corpus.extract", "coretrain.corpus.demo.records")
RUSSIAN = "<p>Утром над рекой стоял туман, и паром ещё не ходил. Зимой здесь рано темнеет."
SITE = "https://site.example"


def differences(only: str = "") -> list[str]:
    """The names of the facts that aren't so; of those that begin with `only`."""
    with tempfile.TemporaryDirectory() as folder:
        facts = [(name, find, expected) for name, find, expected in _facts(Path(folder)) if name.startswith(only)]
        return [name for name, find, expected in facts if find() != expected]


def _facts(folder: Path) -> Iterator[tuple[str, Callable[[], Any], Any]]:
    from coretrain.corpus.demo import records

    pages = [records.response(f"{SITE}/{n}", b"<p>%d " % n + b"x y z " * (n * 40)) for n in range(6)]
    gz, zst = [records.member(page) for page in pages], [zstandard.compress(page) for page in pages]
    stored = gzip.compress(records.response(f"{SITE}/1", b"<p>" + b"\x1f\x8b\x08 x " * 99), 0, mtime=0)
    skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    wrong = [pages[0], pages[1].replace(b"Content-Length: ", b"Content-Length: 1"), *pages[2:]]
    flipped = [gz[0], gz[1][:-6] + b"\0\0" + gz[1][-4:], *gz[2:]]
    headless = [gz[0], b"\0" + gz[1][1:], *gz[2:]]
    files = {
        "x.warc": pages,
        "cut header.warc": [pages[0], pages[1][:120], *pages[2:]],
        "cut url.warc": [pages[0], pages[1][: pages[1].index(b"site.example") + 4], *pages[2:]],
        "cut date.warc": [pages[0], b"WARC/1.0\r\nWARC-Date: 2026", *pages[2:]],
        "cut line.warc": [pages[0], b"WARC/1.0\r\n\r", *pages[2:]],
        "wrong.warc": wrong,
        "x.warc.gz": gz,
        "flipped.warc.gz": flipped,
        "headless.warc.gz": headless,
        "ended.warc.gz": [*gz[:5], gz[5][:-40]],
        "few.warc.gz": [gz[0], records.member(pages[1] + pages[2]), *gz[3:]],
        "stored.warc.gz": [gz[0], stored, *gz[2:]],
        "x.warc.zst": [skipped, *zst],
        "skipped.warc.zst": [skipped.join(zst)],
        "whole.warc.gz": [gzip.compress(b"".join(pages), mtime=0)],
    }
    damaged = {name for name in files if name.partition(" ")[0] in ("cut", "wrong.warc", "flipped.warc.gz")}
    damaged.add("headless.warc.gz")
    starts = [sum(map(len, gz[:n])) for n in range(6)]
    for name, parts in files.items():
        lost, kind = ("1", ["damaged"]) if name in damaged else ("5", ["truncated"]) if "ended" in name else ("", [])
        expected = [n for n in "012345" if n != lost]
        sizes = (1, 100, 333, len(parts[0]), 2**26)
        yield (
            f"crawl {name}",
            lambda name=name, parts=parts, sizes=sizes: _read(folder, name, parts, sizes),
            (expected, kind),
        )
    yield "small blocks", lambda: _in_blocks(folder, pages), (list("012345"), [])
    yield "streams", lambda: _packing(folder, gzip.compress(b"".join(pages), mtime=0)), "gzip-stream"
    yield "offsets", lambda: _offsets(folder, gz), starts
    lines = b'{"text": "a"}\r\n\n{"text": "b\\n"}\n{"text": 7}\n{"text": "c"}'
    expected = (["a", "b\n", "c"], [0, 16, 44], ["no-text"])
    yield "lines", lambda: _rows(folder, lines, range(1, len(lines) + 2)), expected
    yield "table", lambda: _table(folder), [list("abcdefg")] * 3
    yield "bodies", _bodies, ["x" * 30] * 6 + ["bad-chunk", "bad-compression", "bad-compression"]
    yield "index", lambda: _index(folder, gz, starts), (["4", "2"], ["bad-line"])
    yield "files", lambda: _files(folder), ["a/x.jsonl", "b/x.jsonl", "deep/y.jsonl"]
    yield "encodings", _encodings, ["utf-8", "cp1251", "koi8-r", "utf-16-le", "utf-8"]
    yield "layouts", lambda: _layouts(folder), ["fineweb-edu", "fineweb", "c4", "pile", "redpajama-v1", "text"]
    yield (
        "kinds",
        lambda: _kinds(folder),
        ["status", "not-html", "not-html", "empty", "bad-http", "revisit", "Document"],
    )
    yield "guard", _guard, [*(f"p {n}" for n in range(40))]
    yield "guard memory", _guard_memory, ["a", "memory", "b"]


def _read(folder: Path, name: str, parts: list[bytes], sizes: tuple[int, ...]) -> Any:
    """Which pages come and what is told, which must be the same in pieces of all `sizes`."""
    from coretrain.corpus.readers.open import plan, read

    path = folder / name
    path.write_bytes(b"".join(parts))
    found = [[one for piece in plan([str(path)], piece_bytes=size) for one in read(piece)] for size in sizes]
    if any(repr(other) != repr(found[-1]) for other in found):
        return "pieces differ"
    troubles = [one.kind for one in found[-1] if type(one).__name__ == "Trouble"]
    return [one.metadata["url"][-1] for one in found[-1] if type(one).__name__ != "Trouble"], troubles


def _in_blocks(folder: Path, parts: list[bytes]) -> Any:
    """Read a few bytes at a time, behind a place where no record begins."""
    from coretrain.corpus.readers import warc, window

    found = []
    for block in (1, 3, 7, 64):
        window.BLOCK = block
        found.append(_read(folder, "b.warc", [b"".join(parts)], (1, 2**26)))
        with open(folder / "b.warc", "rb") as file:
            file.seek(5)
            one = window.Window(file.read, 5)
            if not warc.seek_plain(one) or one.at != len(parts[0]):
                return f"block of {block}"
    return found[0] if all(other == found[0] for other in found) else "blocks differ"


def _packing(folder: Path, raw: bytes) -> Any:
    from coretrain.corpus.readers.open import plan

    (folder / "s.warc.gz").write_bytes(raw)
    return plan([str(folder / "s.warc.gz")], piece_bytes=1)[0].packing


def _offsets(folder: Path, parts: list[bytes]) -> Any:
    from coretrain.corpus.readers.open import plan, read

    (folder / "o.warc.gz").write_bytes(b"".join(parts))
    pieces = plan([str(folder / "o.warc.gz")], piece_bytes=1)
    assert [piece.start for piece in pieces] == [one.metadata["offset"] for piece in pieces for one in read(piece)]
    return [piece.start for piece in pieces]


def _rows(folder: Path, raw: bytes, sizes: range) -> Any:
    from coretrain.corpus.readers.open import plan, read

    (folder / "l.jsonl").write_bytes(raw)
    seen = set()
    for size in sizes:
        found = [one for piece in plan([str(folder / "l.jsonl")], piece_bytes=size) for one in read(piece)]
        rows = [one for one in found if type(one).__name__ == "Document"]
        kinds = [one.kind for one in found if type(one).__name__ == "Trouble"]
        seen.add(json.dumps([[one.text for one in rows], [int(one.id.split("#")[1]) for one in rows], kinds]))
    return tuple(json.loads(seen.pop())) if len(seen) == 1 else "pieces differ"


def _table(folder: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from coretrain.corpus.readers.open import plan, read

    pq.write_table(pa.table({"text": list("abcdefg")}), folder / "t.parquet", row_group_size=2)
    found = []
    for size in (1, 150, 2**26):
        rows = [one for piece in plan([str(folder / "t.parquet")], piece_bytes=size) for one in read(piece)]
        found.append([one.text for one in rows if one.id == f"t.parquet#{'abcdefg'.index(one.text)}"])
    return found


def _bodies() -> Any:
    from coretrain.corpus.demo.records import chunked, deflated
    from coretrain.corpus.readers.http import BodyError, whole_body

    body = b"x" * 30
    found = []
    for sent, transfer, coding in [
        (chunked(body, 7), "chunked", ""),
        (chunked(gzip.compress(body, mtime=0), 9), "chunked", "gzip"),
        (deflated(body), "", "deflate"),
        (body, "chunked", ""),
        (body, "", "gzip"),
        (zstandard.compress(body), "", "zstd"),
        (chunked(body, 7)[:-9], "chunked", ""),
        (gzip.compress(body, mtime=0)[:-1], "", "gzip"),
        (zstandard.compress(body)[:-1], "", "zstd"),
    ]:
        try:
            found.append(whole_body(sent, transfer, coding).decode())
        except BodyError as error:
            found.append(error.kind)
    return found


def _index(folder: Path, parts: list[bytes], starts: list[int]) -> Any:
    rows = [
        {"filename": "far/away/x.warc.gz", "offset": str(starts[4]), "length": str(len(parts[4]))},
        {"filename": "x.warc.gz", "offset": -1, "length": 5},
        {"filename": "x.warc.gz", "offset": starts[2], "length": len(parts[2])},
    ]
    (folder / "x.warc.gz").write_bytes(b"".join(parts))
    return _read(folder, "x.cdxj", [f"k 2026 {json.dumps(row)}\n".encode() for row in rows], (64, 10**6))


def _files(folder: Path) -> Any:
    from coretrain.corpus.readers.files import survey

    root = folder / "files"
    for name in ("a/x.jsonl", "b/x.jsonl", "a/deep/y.jsonl", "a/.hidden.jsonl", "a/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"{}\n")
    if not (root / "a" / "round").exists():
        (root / "a" / "round").symlink_to(root / "a")
        (root / "b" / "again.jsonl").symlink_to(root / "a" / "x.jsonl")
    names = [
        file.name for file in survey([str(root / "b" / "x.jsonl"), str(root / "a"), str(root / "a" / "x.jsonl")]).files
    ]
    again = [
        file.name for file in survey([str(root / "a" / "x.jsonl"), str(root / "a"), str(root / "b" / "x.jsonl")]).files
    ]
    return names if names == again else "the order of words matters"


def _encodings() -> Any:
    from coretrain.corpus.extract.encoding import decoded

    found = []
    for real, said in [("utf-8", "koi8-r"), ("cp1251", "cp1251"), ("koi8-r", ""), ("utf-16", "utf-8")]:
        text, taken = decoded(RUSSIAN.encode(real), said)
        found.append(taken if text == RUSSIAN else text)
    return [*found, decoded(RUSSIAN.encode().replace(b"\xd0\xb0", b"\xff", 1), "utf-8")[1]]


def _layouts(folder: Path) -> Any:
    from coretrain.corpus.readers.open import plan

    rows: list[dict[str, Any]] = [
        {"text": "", "dump": "", "url": "", "file_path": "", "int_score": 3},
        {"text": "", "dump": "", "url": "", "file_path": ""},
        {"text": "", "timestamp": "", "url": ""},
        {"text": "", "meta": {"pile_set_name": ""}},
        {"text": "", "meta": {}},
        {"text": "", "title": ""},
    ]
    found = []
    for row in rows:
        (folder / "w.jsonl").write_text(json.dumps(row))
        found.append(plan([str(folder / "w.jsonl")])[0].layout)
    return found


def _kinds(folder: Path) -> Any:
    from coretrain.corpus.demo import records
    from coretrain.corpus.readers.open import plan, read

    parts = [
        records.response(SITE, b"<p>x", status="404 No"),
        records.response(SITE, b"x", {"Content-Type": "image/png"}),
        records.response(SITE, b"\0\0\0\0"),
        records.response(SITE, b"\n"),
        records.record("response", SITE, b"nothing", "application/http"),
        records.record("revisit", SITE, b"HTTP/1.1 304 Not\r\n\r\n", "application/http"),
        records.request(SITE),
        records.conversion(SITE, "x"),
    ]
    (folder / "k.warc").write_bytes(b"".join(parts))
    found = [one for piece in plan([str(folder / "k.warc")]) for one in read(piece)]
    return [getattr(one, "kind", type(one).__name__) for one in found]


def _guard() -> Any:
    from coretrain.corpus.document import Page
    from coretrain.corpus.extract.extract import Extractor
    from coretrain.corpus.extract.guarded import guarded

    pages = [Page(str(n), b"<p>p %d" % n + b" " * (n % 7) * 9000) for n in range(40)]
    return [getattr(one, "text", None) for one in guarded(pages, Extractor())]


def _guard_memory() -> Any:
    from coretrain.corpus.document import Page
    from coretrain.corpus.extract.extract import Extractor
    from coretrain.corpus.extract.guarded import guarded

    pages = [Page("0", b"a"), Page("1", b" " * (40 * 2**20)), Page("2", b"b")]
    return [getattr(one, "kind", None) or one.text for one in guarded(pages, Extractor("none", memory_mb=64))]

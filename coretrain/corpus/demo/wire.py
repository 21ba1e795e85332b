"""Planted pages whose bytes are odd: wrong charsets, chunked and compressed bodies, and what isn't a page at all."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from coretrain.corpus.demo.foreign import SENTENCES
from coretrain.corpus.demo.pages import flat, page
from coretrain.corpus.demo.plants import SITE, Made, essay, planted
from coretrain.corpus.demo.records import chunked, deflated, record, record_id, response
from coretrain.corpus.demo.texts import Text

HTML = "text/html"
CHARSETS = (
    # name, language, the bytes' charset, what the header says, what the page says
    ("windows-1252-as-utf-8", "fr", "cp1252", "utf-8", ""),
    ("utf-8-as-latin-1", "de", "utf-8", "iso-8859-1", ""),
    ("shift-jis-unsaid", "ja", "shift_jis", "", ""),
    ("euc-jp-in-meta", "ja", "euc_jp", "", "euc-jp"),
    ("windows-1251", "ru", "cp1251", "windows-1251", ""),
    ("koi8-r-unsaid", "ru", "koi8_r", "", ""),
    ("gb18030-unsaid", "zh", "gb18030", "", ""),
    ("utf-16", "en", "utf-16", "utf-16", ""),
    ("no-such-charset", "es", "utf-8", "x-user-defined-9", ""),
)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
PDF = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj << >> endobj\n"


def charsets(pool: list[str], dice: random.Random) -> Iterator[Made]:
    """Pages whose charset is said wrong, or not at all."""
    for name, language, real, header, meta in CHARSETS:
        if language == "en":
            text, outcome = essay("Two bytes each", pool, dice, 12), "kept"
        else:
            blank = "" if language in ("zh", "ja") else " "
            chosen = SENTENCES[language]
            text, outcome = Text(chosen[1], (blank.join(chosen[:5]), blank.join(chosen[5:]))), "language"
        contains = max(text.paragraphs[0].split(". "), key=len)[:30]
        made = planted("charset", name, outcome, text, "", language=language, contains=contains, charset=real)
        said = {"Content-Type": f"{HTML}; charset={header}" if header else HTML}
        yield replace(made, record=response(made.url, page(text, (), real, meta, language), said))


def bodies(pool: list[str], dice: random.Random) -> Iterator[Made]:
    """Pages that were sent in chunks or compressed, truly or not, and some that broke on the way."""
    ways: dict[str, tuple[dict[str, str], str]] = {
        # what the headers say; how the page ends
        "chunked": ({"Transfer-Encoding": "chunked"}, ""),
        "chunked-gzip": ({"Transfer-Encoding": "chunked", "Content-Encoding": "gzip"}, ""),
        "gzip": ({"Content-Encoding": "gzip"}, ""),
        "deflate": ({"Content-Encoding": "deflate"}, ""),
        "deflate-raw": ({"Content-Encoding": "deflate"}, ""),
        "chunked-untrue": ({"Transfer-Encoding": "chunked"}, ""),
        "gzip-untrue": ({"Content-Encoding": "gzip"}, ""),
        "chunk-broken": ({"Transfer-Encoding": "chunked"}, "bad-chunk"),
        "gzip-broken": ({"Content-Encoding": "gzip"}, "bad-compression"),
        "encoding-unknown": ({"Content-Encoding": "x-rot13"}, "bad-compression"),
    }
    for name, (headers, trouble) in ways.items():
        text = essay(f"Sent as {name}", pool, dice, 12)
        outcome, facts = ("trouble", {"trouble": trouble}) if trouble else ("kept", {"contains": text.paragraphs[0]})
        made = planted("body", name, outcome, text, "", **facts)
        raw = page(text)
        sent = {
            "chunked": chunked(raw),
            "chunked-gzip": chunked(gzip.compress(raw, 6, mtime=0)),
            "gzip": gzip.compress(raw, 6, mtime=0),
            "deflate": zlib.compress(raw),
            "deflate-raw": deflated(raw),
            "chunk-broken": chunked(raw, 300).replace(b"\r\n12c\r\n", b"\r\nlater\r\n", 1),
            "gzip-broken": gzip.compress(raw, 6, mtime=0)[:-200],
        }.get(name, raw)
        yield replace(made, record=response(made.url, sent, {"Content-Type": f"{HTML}; charset=utf-8", **headers}))
    text = essay("Cut by the crawler", pool, dice, 12)
    made = planted("body", "cut-by-crawler", "kept", text, "", contains=text.paragraphs[0], truncated="length")
    raw = page(text)
    yield replace(made, record=response(made.url, raw[: raw.index(b"<aside")], more={"WARC-Truncated": "length"}))


def others(pool: list[str], dice: random.Random) -> Iterator[Made]:
    """What isn't a page: pictures, failures, repeats; and records that will be damaged."""
    text = essay("Not found", pool, dice, 12)
    yield _other("not-found", page(text), {"Content-Type": HTML}, "status", "404 Not Found")
    yield _other("moved", b"", {"Location": f"{SITE}/", "Content-Type": HTML}, "status", "301 Moved Permanently")
    yield _other("picture", PNG, {"Content-Type": "image/png"}, "not-html")
    yield _other("paper", PDF, {"Content-Type": "application/pdf"}, "not-html")
    yield _other("picture-as-page", PNG * 4, {"Content-Type": HTML}, "not-html")
    yield _other("empty", b"", {"Content-Type": HTML}, "empty")
    yield _other("no-http", b"", {}, "bad-http", raw=b"\x00\x01\x02 not an answer")
    repeat = _other("repeat", b"", {"Content-Type": HTML}, "revisit")
    more = {"WARC-Profile": "http://netpreserve.org/warc/1.0/revisit/identical-payload-digest"}
    block = b"HTTP/1.1 304 Not Modified\r\n\r\n"
    again = record("revisit", repeat.url, block, "application/http; msgtype=response", more)
    repeated = replace(repeat.plant, id=record_id("revisit", repeat.url)) if repeat.plant else None
    yield replace(repeat, record=again, plant=repeated)
    for number, damage in enumerate(("flipped", "flipped", "header", "cut")):
        made = planted("record", f"{damage}-{number}", "trouble", essay(f"Damaged {number}", pool, dice, 12))
        facts: dict[str, Any] = {"trouble": "truncated" if damage == "cut" else "damaged"}
        yield replace(made, plant=replace(made.plant, facts=facts) if made.plant else None, damage=damage, text="")


def _other(
    name: str, body: bytes, headers: dict[str, str], trouble: str, status: str = "200 OK", raw: bytes | None = None
) -> Made:
    made = planted("no-page", name, "trouble", Text(name, ()), "", trouble=trouble)
    if raw is not None:
        return replace(made, text="", record=record("response", made.url, raw, "application/http; msgtype=response"))
    return replace(
        made, text=flat(Text(name, ())) if name == "not-found" else "", record=response(made.url, body, headers, status)
    )

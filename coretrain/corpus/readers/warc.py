"""Records of WARC, WET and WAT files: found, unpacked, and made into pages and documents.

Source: ISO 28500 (WARC 1.0 and 1.1). Damaged records are passed over, and the reading goes on at the next record.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from fastwarc.warc import WarcRecord
from resiliparse.parse.encoding import detect_mime

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json
from coretrain.corpus.document import Document, Page, Trouble, Value
from coretrain.corpus.readers.http import BodyError, whole_body
from coretrain.corpus.readers.members import (
    DICTIONARY,
    GZIP,
    LARGEST,
    SIGN,
    SKIPPED,
    ZSTD,
    Packing,
    TooLargeError,
    dictionary_of,
    gzip_members,
    skip_frames,
    zstd_frames,
)
from coretrain.corpus.readers.piece import END
from coretrain.corpus.readers.streams import opened
from coretrain.corpus.readers.window import DamagedError, TruncatedError, Window
from coretrain.tokenizers.tokenizer import well_formed

HEAD = 2**15
"""Bytes that a record's header may have."""
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n", re.IGNORECASE)
TYPE = re.compile(rb"\r\nwarc-type:[ \t]*([a-z]+)", re.IGNORECASE)
HEADER = re.compile(rb"WARC/\d\.\d\r\n(?:[^\s:]+:[^\r\n]*\r\n|[ \t][^\r\n]*\r\n)+\r\n")
TWO = re.compile(rb"\n(?!warc-[a-z-]*target-uri:)[^\r\n]*WARC/\d\.\d\r\n", re.IGNORECASE)
"""Where a header was cut within a line, and the next record's goes on there."""
ENDS = re.compile("[;,]")
"""What ends a media type: parameters, or the same said twice."""
BREAK = b"\r\n\r\n"
HTML = ("text/html", "application/xhtml+xml")
Item = tuple[int, bytes] | Trouble
"""A record's place and its bytes, or what is wrong at a place."""


def plain_records(window: Window, end: int, name: str) -> Iterator[Item]:
    """Records that aren't packed and begin before `end`."""
    while end == END or window.at < end:
        if not window.has(1):
            if window.broken:
                yield broken(window, name)
            return
        if window.look(1) in b"\r\n":
            window.skip(1)
            continue
        at = window.at
        try:
            size = measured(window)
        except DamagedError as error:
            if window.broken and isinstance(error, TruncatedError):
                yield broken(window, name)
                return
            window.skip(1)
            yield _trouble(error, name, at, seek_plain(window))
            continue
        yield at, window.look(size)
        window.skip(size)
    if window.at > end != END:
        yield _overlap(name, end)


def packed_records(window: Window, end: int, name: str, packing: Packing) -> Iterator[Item]:
    """Records that are packed one by one, or a few together, and begin before `end`."""
    while end == END or window.at < end:
        skip_frames(window)
        if not window.has(1) or window.at >= end != END:
            return
        at = window.at
        try:
            raw, used = packing.unpack(window)
        except DamagedError as error:
            window.skip(1)
            yield _trouble(error, name, at, packing.seek(window))
            continue
        window.skip(used)
        head = _measured(raw)
        if head and raw[sum(head) :] == BREAK:
            yield at, raw
            continue
        for item in plain_records(
            Window(io.BytesIO(raw).read), END, name
        ):  # a few records, or damaged before they were packed
            yield Trouble(item.kind, name, at, item.words) if isinstance(item, Trouble) else (at, item[1])
    if window.at > end != END:
        yield _overlap(name, end)


def packing_of(path: str) -> Packing | None:
    """How the records of a file are packed, each by itself, by what it begins with; None where they aren't packed.

    A file of zstd frames may begin with the dictionary that all need. Raises `UserError` where it can't be read.
    """
    with opened(path) as read:
        window = Window(read)
        if window.look(len(GZIP)) == GZIP:
            return gzip_members()
        if window.look(4) in (ZSTD, DICTIONARY) or window.look(4)[1:] == SKIPPED:
            try:
                return zstd_frames(dictionary_of(window))
            except DamagedError as error:
                raise UserError(
                    "corpus/zstd-dictionary-damaged",
                    f"{path} begins with a damaged dictionary, which all its records need ({error}): fetch it again",
                ) from None
    return None


def packed_as_one(window: Window, packing: Packing) -> bool:
    """Whether the member that begins at the window's place has more than one record, as a file packed whole does."""
    head = _measured(packing.head(window, HEAD))
    if head is None:
        return False
    try:
        raw, _ = packing.unpack(window, min(sum(head) + HEAD, LARGEST))
    except TooLargeError:
        return True
    except DamagedError:
        return False
    return SIGN in raw[sum(head) : sum(head) + 16]


def measured(window: Window) -> int:
    """The bytes of the record that begins at the window's place, not packed. Raises `DamagedError`."""
    head = _measured(window.look(HEAD))
    if head is None:
        raise DamagedError("no record begins here")
    size = sum(head)
    if size > LARGEST:
        raise TooLargeError(f"it has more than {LARGEST} bytes")
    if not window.has(size):
        raise TruncatedError("the file ends within it")
    rest = window.look(16, size)
    if not rest.startswith(BREAK) and rest.lstrip(b"\r\n")[:5] not in (b"", SIGN):
        raise DamagedError("its length is wrong")
    return size


def seek_plain(window: Window) -> bool:
    """Go forward to the next place where a whole record begins, not packed, this place too; whether there is one."""
    while window.find(SIGN):
        try:
            measured(window)
            return True
        except DamagedError:
            window.skip(1)
    return False


def _measured(head: bytes) -> tuple[int, int] | None:
    """Bytes of the header that `head` begins with, and of the block behind it."""
    whole = HEADER.match(head)
    length = LENGTH.search(whole[0]) if whole else None
    if whole is None or length is None or len(TYPE.findall(whole[0])) != 1 or TWO.search(whole[0], len(SIGN)):
        return None
    return whole.end(), int(length[1])


def broken(window: Window, name: str) -> Trouble:
    """That a file which is packed as one can't be unpacked from here on."""
    kind = "truncated" if isinstance(window.broken, TruncatedError) else "damaged"
    return Trouble(kind, name, window.at, f"{window.broken}; what is behind it is lost")


def _trouble(error: DamagedError, name: str, at: int, more: bool) -> Trouble:
    kind = "too-large" if isinstance(error, TooLargeError) else "damaged"
    if isinstance(error, TruncatedError) and not more:
        kind = "truncated"
    return Trouble(kind, name, at, str(error))


def _overlap(name: str, end: int) -> Trouble:
    return Trouble("overlap", name, end, "a record goes on behind this place, where another seemed to begin")


def parsed(raw: bytes, at: int, name: str) -> Page | Document | Trouble | None:
    """What a record gives; None for records that only describe others."""
    kind = TYPE.search(raw)
    type_ = kind[1].decode().lower() if kind else ""
    if type_ in ("warcinfo", "request"):
        return None
    try:
        record = WarcRecord.from_bytes(raw)
        headers = {key.lower(): value for key, value in record.headers.items()}
    except Exception as error:  # of a library for whatever the bytes are
        return Trouble("damaged", name, at, str(error)[:200])
    id_ = _bare(headers.get("warc-record-id", "")) or f"{name}#{at}"
    metadata: dict[str, Value] = {
        "url": well_formed(headers.get("warc-target-uri", "").strip("<> ")),
        "date": headers.get("warc-date", ""),
        "file": name,
        "offset": at,
    }
    if truncated := headers.get("warc-truncated"):
        metadata["truncated"] = truncated
    if (other := headers.get("warc-refers-to")) and type_ in ("conversion", "metadata"):
        metadata["refers_to"] = _bare(other)
    if type_ == "conversion":
        if languages := headers.get("warc-identified-content-language"):
            metadata["languages"] = languages
        return Document(id_, record.reader.read().decode("utf-8", "replace").removesuffix("\n"), metadata)
    if type_ == "metadata":
        if not headers.get("content-type", "").startswith("application/json"):
            return None
        return _described(id_, record.reader.read(), metadata)
    if type_ == "response":
        return _page(id_, record, headers.get("warc-identified-payload-type", ""), metadata)
    if type_ == "resource":
        return _resource(id_, record.reader.read(), headers.get("content-type", ""), metadata)
    known = type_ in ("revisit", "continuation")
    return Trouble(type_ if known else "unknown-record", name, at, str(metadata["url"]))


def _bare(id_: str) -> str:
    return well_formed(id_.strip("<> ").removeprefix("urn:uuid:"))


def _page(id_: str, record: WarcRecord, identified: str, metadata: dict[str, Value]) -> Page | Trouble:
    name, at, url = str(metadata["file"]), int(str(metadata["offset"])), str(metadata["url"])
    try:
        record.parse_http(quirks_mode=True)  # lines may end without a carriage return
        status, http = record.http_headers.status_code, record.http_headers
        body = record.reader.read()
    except Exception as error:  # of a library for whatever the bytes are
        return Trouble("bad-http", name, at, f"{url}: {str(error)[:200]}")
    if status is None:
        return Trouble("bad-http", name, at, f"{url}: no answer of a web server")
    if not 200 <= status < 300:
        return Trouble("status", name, at, f"{url}: {status}")
    said = ENDS.split(http.get("Content-Type") or "")[0].strip().lower()
    if (identified or said or HTML[0]) not in HTML:
        return Trouble("not-html", name, at, f"{url}: {identified or said}")
    try:
        body = whole_body(body, http.get("Transfer-Encoding") or "", http.get("Content-Encoding") or "")
    except BodyError as error:
        return Trouble(error.kind, name, at, f"{url}: {error}")
    if not body.strip():
        return Trouble("empty", name, at, url)
    charset = (record.http_charset or "").strip("\"' ").lower()
    if found := _no_text(body, charset):
        return Trouble("not-html", name, at, f"{url}: {found}")
    return Page(id_, body, charset, said, metadata)


def _resource(id_: str, body: bytes, media: str, metadata: dict[str, Value]) -> Page | Trouble:
    """What was stored without the talk of a web server."""
    said, _, rest = media.lower().partition(";")
    if said.strip() not in HTML:
        place = str(metadata["file"]), int(str(metadata["offset"]))
        return Trouble("not-html", *place, f"{metadata['url']}: {said.strip()}")
    return Page(id_, body, rest.partition("charset=")[2].strip("\"' "), said.strip(), metadata)


def _no_text(body: bytes, charset: str) -> str:
    """What a body is that says it's HTML and isn't; nothing where it may be."""
    wide = charset.startswith(("utf-16", "utf-32")) or body.startswith((b"\xff\xfe", b"\xfe\xff"))
    if body.startswith(b"%PDF-") or (b"\0" in body[:2048] and not wide):
        return detect_mime(body[:4096])
    return ""


def _described(id_: str, raw: bytes, metadata: dict[str, Value]) -> Document | Trouble:
    """A record of a WAT file: title, description and links of a page, to be joined with its text by the URL."""
    try:
        envelope = from_json(raw)["Envelope"]
        answer = envelope["Payload-Metadata"].get("HTTP-Response-Metadata")
        if answer is None:
            return Document(id_, "", {**metadata, "of": _word(envelope, "WARC-Header-Metadata", "WARC-Type")})
        html = answer.get("HTML-Metadata") or {}
        head, links = html.get("Head") or {}, html.get("Links") or []
        metas = {str(one.get("name")): one.get("content") for one in head.get("Metas") or []}
        found: dict[str, Value] = {
            "of": "response",
            "status": _word(answer, "Response-Message", "Status"),
            "title": well_formed(str(head.get("Title") or "")),
            "description": well_formed(str(metas.get("description") or "")),
            "links": len(links),
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return Trouble("bad-json", str(metadata["file"]), int(str(metadata["offset"])), str(metadata["url"]))
    return Document(id_, "", {**metadata, **found})


def _word(said: Any, *path: str) -> str:
    for key in path:
        said = said.get(key) or {}
    return str(said or "")

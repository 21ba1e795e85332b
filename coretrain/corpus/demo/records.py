"""Writes WARC records: enough of ISO 28500 for a demo and for tests, each record a gzip member of its own."""

from __future__ import annotations

import gzip
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence

DATE = "2026-11-30T12:00:00Z"
SOFTWARE = "software: twintrain's demo\r\nformat: WARC File Format 1.0\r\n"


def record_id(kind: str, url: str) -> str:
    """The id of a record: the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {url}"))


def record(kind: str, url: str, block: bytes, media: str, more: Mapping[str, str] | None = None) -> bytes:
    """One record, not compressed. `more` are further headers; it may replace those that stand here."""
    headers = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{record_id(kind, url)}>",
        "WARC-Date": DATE,
        "WARC-Target-URI": url,
        "Content-Type": media,
        "Content-Length": str(len(block)),
        **(more or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    return b"WARC/1.0\r\n" + lines.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body: bytes, headers: Mapping[str, str], status: str = "200 OK") -> bytes:
    """An answer of a web server."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def response(
    url: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
    status: str = "200 OK",
    more: Mapping[str, str] | None = None,
) -> bytes:
    """The record of a fetched page; HTML in UTF-8 if `headers` say nothing else."""
    block = http(body, {"Content-Type": "text/html; charset=utf-8"} if headers is None else headers, status)
    return record("response", url, block, "application/http; msgtype=response", more)


def request(url: str) -> bytes:
    """The record of what was asked for."""
    host = url.split("/")[2]
    block = f"GET {url.split(host, 1)[1] or '/'} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    return record("request", url, block, "application/http; msgtype=request")


def info(name: str) -> bytes:
    """The first record of a file."""
    more = {"WARC-Filename": name, "WARC-Target-URI": ""}
    return record("warcinfo", name, SOFTWARE.encode(), "application/warc-fields", more)


def conversion(url: str, text: str) -> bytes:
    """A record of a WET file: the page's text."""
    more = {"WARC-Refers-To": f"<urn:uuid:{record_id('response', url)}>"}
    return record("conversion", url, text.encode(), "text/plain", more)


def links(url: str, title: str, hrefs: Sequence[str]) -> bytes:
    """A record of a WAT file: what the page's head says, and its links."""
    head = {"Title": title, "Metas": [{"name": "generator", "content": "twintrain's demo"}]}
    html = {"Head": head, "Links": [{"path": "A@/href", "url": one} for one in hrefs]}
    payload = {"HTTP-Response-Metadata": {"Response-Message": {"Status": "200"}, "HTML-Metadata": html}}
    header = {"WARC-Type": "response", "WARC-Target-URI": url, "WARC-Date": DATE}
    said = {"Envelope": {"WARC-Header-Metadata": header, "Payload-Metadata": payload}}
    more = {"WARC-Refers-To": f"<urn:uuid:{record_id('response', url)}>"}
    return record("metadata", url, json.dumps(said).encode(), "application/json", more)


def member(whole: bytes) -> bytes:
    """A record as a gzip member, without the time of day."""
    return gzip.compress(whole, 6, mtime=0)


def chunked(body: bytes, size: int = 1000) -> bytes:
    """A body in chunks, as HTTP/1.1 sends what it doesn't know the length of."""
    cut = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in cut) + b"0\r\n\r\n"


def deflated(body: bytes) -> bytes:
    """A body compressed as many servers understand `deflate`: without zlib's header."""
    packer = zlib.compressobj(6, wbits=-15)
    return packer.compress(body) + packer.flush()

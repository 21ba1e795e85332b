"""Bodies as servers sent them: out of chunks, and unpacked. Servers and crawlers say untrue things of both."""

from __future__ import annotations

import io
import re
import zlib

import zstandard
from fastwarc.stream_io import BrotliReader

from coretrain.corpus.readers.members import LARGEST
from coretrain.corpus.readers.streams import Frames

CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
GZIP = b"\x1f\x8b"
UNPACKED = ("", "identity", "none", "utf-8", "binary", "8bit")
"""What `Content-Encoding` says where nothing is packed; the last few are mistakes that are often made."""


class BodyError(Exception):
    """A body that can't be had; `kind` is what to count it by."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(words)
        self.kind = kind


def whole_body(body: bytes, transfer: str = "", content: str = "") -> bytes:
    """The body as the server meant it, given the headers `Transfer-Encoding` and `Content-Encoding`.

    What says that it is chunked or packed and isn't is taken as it is: many crawlers store bodies unpacked and leave
    the headers. Raises `BodyError` of kind `bad-chunk` or `bad-compression`.
    """
    if "chunked" in transfer.lower():
        body = _joined(body)
    for coding in reversed([one.strip().lower() for one in content.split(",")]):
        body = _unpacked(body, coding)
    return body


def _joined(body: bytes) -> bytes:
    """The chunks, one after the other."""
    parts, at = list[bytes](), 0
    while True:
        head = CHUNK.match(body, at)
        if head is None and at == 0:
            return body  # it isn't chunked
        if head is None:
            raise BodyError("bad-chunk", f"byte {at} of the body should begin a chunk")
        size, begin = int(head[1], 16), head.end()
        if size == 0:
            return b"".join(parts)
        if begin + size > len(body):
            raise BodyError("bad-chunk", f"the chunk at byte {at} ends too early")
        parts.append(body[begin : begin + size])
        at = begin + size
        while body[at : at + 1] in (b"\r", b"\n"):
            at += 1


def _unpacked(body: bytes, coding: str) -> bytes:
    if coding in UNPACKED or not body:
        return body
    if coding in ("gzip", "x-gzip"):
        return _inflated(body, 31) if body.startswith(GZIP) else body
    if coding == "deflate":
        head = body[:2]
        wrapped = len(head) == 2 and head[0] & 0x0F == 8 and (head[0] * 256 + head[1]) % 31 == 0
        return body if body.lstrip().startswith(b"<") else _inflated(body, 15 if wrapped else -15)
    if coding not in ("br", "zstd"):
        raise BodyError("bad-compression", f"it is packed as {coding[:40]}, which isn't known")
    if body.lstrip().startswith(b"<"):
        return body
    try:
        if coding == "br":
            return _limited(BrotliReader(io.BytesIO(body)).read(LARGEST + 1))
        frames, parts, size = Frames(io.BytesIO(body)), list[bytes](), 0
        while size <= LARGEST and (part := frames.read()):
            parts.append(part)
            size += len(part)
        return _limited(b"".join(parts))
    except (OSError, ValueError, EOFError, zstandard.ZstdError) as error:
        raise BodyError("bad-compression", _reason(error)) from None


def _inflated(body: bytes, bits: int) -> bytes:
    unpacker = zlib.decompressobj(bits)
    try:
        whole = _limited(unpacker.decompress(body, LARGEST + 1))
    except zlib.error as error:
        raise BodyError("bad-compression", _reason(error)) from None
    if not unpacker.eof:
        raise BodyError("bad-compression", "it ends too early")
    return whole


def _limited(whole: bytes) -> bytes:
    if len(whole) > LARGEST:
        raise BodyError("bad-compression", f"it unpacks to more than {LARGEST} bytes")
    return whole


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__

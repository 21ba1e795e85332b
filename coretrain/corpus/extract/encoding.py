"""Which encoding a page has, whatever its server says."""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.IGNORECASE)
META_WITHIN = 4096
"""Bytes in which a page says its charset; HTML says 1,024, and pages don't keep to it."""
WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs"}
"""Encodings that hold all of a narrower one, which pages name and don't keep to."""
UNTRUE = ("utf-8", "cp1252")
"""What servers say of every page, if nobody told them anything. A page in UTF-8 shows it by itself."""
ESCAPED = ("iso2022_jp",)
"""Encodings whose bytes are all ASCII."""
FEW = 0.05
"""Share of what isn't ASCII that may be broken in a page that says it's UTF-8."""


def decoded(body: bytes, charset: str = "") -> tuple[str, str]:
    """(text, the encoding that was taken) of a page, given what its server says.

    In this order: a byte order mark; UTF-8 where the bytes are that; what server or page say, where the bytes can be
    that and it isn't just what is said of every page; UTF-8 with a few broken characters, where it is said; what the
    letters look like (resiliparse). What can't be decoded becomes U+FFFD.
    """
    for mark, encoding in MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace"), encoding
    said = META.search(body, 0, META_WITHIN)
    claims = [_known(one) for one in (charset, said[1].decode() if said else "")]
    if escaped := next((one for one in claims if one in ESCAPED), ""):
        return body.decode(escaped, "replace"), escaped
    try:
        return body.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    for encoding in claims:
        if encoding and encoding not in UNTRUE:
            try:
                return body.decode(encoding), encoding
            except UnicodeDecodeError:
                pass
    if "utf-8" in claims:
        text = body.decode("utf-8", "replace")
        if text.count("\ufffd") <= FEW * (len(text) - len(text.encode("ascii", "ignore"))):
            return text, "utf-8"
    encoding = _known(detect_encoding(body) or "") or "cp1252"
    return body.decode(encoding, "replace"), encoding


def _known(name: str) -> str:
    """The encoding that browsers take for a name, as Python calls it; nothing where there is none."""
    try:
        found = map_encoding_to_html5(name.strip(), fallback_utf8=False) if name.strip() else None
        return codecs.lookup(WIDER.get(found, found)).name if found else ""
    except LookupError:
        return ""

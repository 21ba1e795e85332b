"""The text of a page: a function of its bytes alone. Kept free of what takes long to import: each worker imports it."""

from __future__ import annotations

import re

from coretrain.corpus.extract.encoding import decoded

KINDS = {
    "resiliparse": "the main content, by resiliparse: fast, and what DCLM used",
    "trafilatura": "the main content, by trafilatura with a preference for precision, as FineWeb: 15 times slower",
    "none": "the page's source as it is, decoded",
}
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
RETURNS = re.compile("\r\n?")


def text_of(body: bytes, charset: str, kind: str) -> tuple[str, str]:
    """(text, encoding) of a page. Nothing is remembered from one page to the next."""
    html, encoding = decoded(body, charset)
    text = _EXTRACTORS[kind](html)
    return CONTROLS.sub("", RETURNS.sub("\n", text)).strip(), encoding


def _resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(html, main_content=True, alt_texts=False)


def _trafilatura(html: str) -> str:
    from trafilatura import extract

    # its own removal of repeated paragraphs remembers other pages: what a page gives would depend on their order
    found = extract(html, favor_precision=True, include_comments=False, deduplicate=False)
    return found if isinstance(found, str) else ""


def _none(html: str) -> str:
    return html


_EXTRACTORS = {"resiliparse": _resiliparse, "trafilatura": _trafilatura, "none": _none}

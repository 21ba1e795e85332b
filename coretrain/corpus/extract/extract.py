"""An extractor: pages in, documents out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from coretrain.base.errors import UserError, meant
from coretrain.corpus.document import Document, Page
from coretrain.corpus.extract.text import KINDS, text_of


@dataclass(frozen=True)
class Extractor:
    """How the text of pages is found. What a page gives depends on its bytes, and on nothing else."""

    kind: str = "resiliparse"
    """One of `KINDS` (`text.py`)."""
    deadline_s: float = 20.0
    """Seconds of a processor that a page may take; usual are 0.002, and 0.04 for the slowest of a hundred.

    Time isn't the same in two runs: a page that takes nearly as long may come through in one and not in another.
    """
    memory_mb: int = 2048
    """MiB that a page may take."""

    def __post_init__(self) -> None:
        """Raise `UserError` where something can't be, or isn't installed."""
        check(self.kind)
        if not 0 < self.deadline_s < 1e6:
            raise UserError("corpus/deadline", f"deadline_s = {self.deadline_s} should be above 0 and below a million")
        if not 64 <= self.memory_mb < 2**30:
            raise UserError("corpus/memory", f"memory_mb = {self.memory_mb} should be 64 or more")

    def document(self, page: Page) -> Document:
        """A page's text, found in this process: nothing guards it."""
        text, encoding = text_of(page.body, page.charset, self.kind)
        return as_document(page, text, encoding)

    def code(self) -> dict[str, str]:
        """Versions of the libraries that the texts depend on."""
        names = {"resiliparse": ("resiliparse",), "trafilatura": ("resiliparse", "trafilatura", "lxml")}
        return {name: _version(name) for name in names.get(self.kind, ("resiliparse",))}


def check(kind: str) -> None:
    """Raise `UserError` where there is no such extractor, or what it needs isn't installed."""
    if kind not in KINDS:
        raise UserError(
            "corpus/extractor-unknown", f"{meant(kind, KINDS)}the extractor {kind} is none of {', '.join(KINDS)}"
        )
    if kind == "trafilatura" and (find_spec("trafilatura") is None or find_spec("lxml_html_clean") is None):
        raise UserError(
            "corpus/trafilatura-missing",
            "the extractor trafilatura needs packages that aren't installed: pip install trafilatura lxml_html_clean "
            "(or take resiliparse)",
        )


def as_document(page: Page, text: str, encoding: str) -> Document:
    """A page whose text is known."""
    return Document(page.id, text, {**page.metadata, "charset": encoding})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"

"""Small WARC files by hand, and what is read of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from coretrain.corpus.demo import records
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.readers.open import PIECE, plan, read

Read = Page | Document | Trouble


def html(number: int, size: int = 200) -> bytes:
    """The page of this number, with about `size` bytes that hardly pack."""
    filler = " ".join(f"{(number * 7919 + word * 104729) % 1000003:x}" for word in range(size // 6))
    return f"<html><body><p>Page number {number} says {filler}</p></body></html>".encode()


def pages(count: int, size: int = 200) -> list[bytes]:
    """Records of pages, one after the other, not packed."""
    return [records.response(f"https://site.example/{number}", html(number, size)) for number in range(count)]


def write(path: Path, parts: Iterable[bytes]) -> str:
    """A file of these parts; its path as a word."""
    path.write_bytes(b"".join(parts))
    return str(path)


def read_all(*words: str, piece_bytes: int = PIECE, layout: str = "auto") -> list[Read]:
    """All that these words mean, read piece by piece."""
    return [one for piece in plan(words, layout, piece_bytes) for one in read(piece)]


def kinds(found: Iterable[Read]) -> dict[str, int]:
    """How often each kind of trouble came, and each class of what was read."""
    return dict(Counter(one.kind if isinstance(one, Trouble) else type(one).__name__ for one in found))


def urls(found: Iterable[Read]) -> list[str]:
    """The last parts of the URLs of what was read, in order."""
    return [str(one.metadata["url"]).rpartition("/")[2] for one in found if not isinstance(one, Trouble)]

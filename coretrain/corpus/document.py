"""A document, a batch of documents with their signals, and a step that takes one batch to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Value = str | int | float | bool | None
Signal = NDArray[np.float64]
"""One number a document; NaN where it wasn't computed."""


@dataclass(frozen=True)
class Document:
    """One text, and where it is from."""

    id: str
    """Unique in a corpus, and the same however the corpus is cut: a WARC record's id, or `FILE#ROW`."""
    text: str
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """`url`, `date`, `file`, `offset`, `source`, `language`, ... as far as they are known."""


@dataclass(frozen=True)
class Page:
    """A page as it was fetched, before its text is extracted."""

    id: str
    body: bytes
    """As the server meant it: not chunked, not compressed."""
    charset: str = ""
    """What the header says; it may lie."""
    media_type: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Trouble:
    """Something that could not be read, and was passed over: it is counted, and told with its place."""

    kind: str
    """A short name to count by: `truncated`, `bad-chunk`, `not-html`, `timeout`, ..."""
    file: str
    offset: int
    """Bytes from the start of the file, or the row of a table."""
    words: str = ""


@dataclass(frozen=True)
class Batch:
    """Documents in their order, and signals beside them."""

    documents: Sequence[Document]
    signals: Mapping[str, Signal] = field(default_factory=dict)
    """By name (`gopher.words`), each as long as `documents`."""

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one.text for one in self.documents]

    def with_texts(self, texts: Sequence[str]) -> Batch:
        """The same documents with other texts."""
        edited = [
            one if one.text is text else replace(one, text=text)
            for one, text in zip(self.documents, texts, strict=True)
        ]
        return replace(self, documents=edited)

    def with_signals(self, signals: Mapping[str, Signal]) -> Batch:
        """More signals beside them."""
        return replace(self, signals={**self.signals, **signals})


class Step(Protocol):
    """Computes signals, or edits texts. A function of the batch alone, and of each document by itself: documents are
    never reordered, added or removed, and how they are cut into batches changes nothing.
    """

    @property
    def name(self) -> str:
        """What its signals and rules begin with."""

    def run(self, batch: Batch) -> Batch:
        """The batch after it."""

"""What is kept of each document to compare it with others: who it is, and its keys; a file for each part of the input.

Documents are numbered through all parts, in the order in which the parts are given. No decision depends on the numbers:
documents are ordered by (priority of their source, hash of their text, id).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.corpus.dedup.arrays import Arrays, read_arrays, write_arrays
from coretrain.corpus.dedup.words import Hashes, Places
from coretrain.corpus.document import Document

KIND = "keys of documents"
MOST = 2**32
"""Documents that can be numbered, in all parts together."""
BATCH_CHARACTERS = 2**22
UNKNOWN = "unknown"
"""The source of a document that has none."""


class Table:
    """Who the documents of a part are, as they come."""

    def __init__(self) -> None:
        self._hashes: list[bytes] = []
        self._ids: list[bytes] = []
        self._sources: dict[str, int] = {}
        self._source: list[int] = []
        self._bytes: list[int] = []

    def add(self, documents: Sequence[Document]) -> None:
        """Some more."""
        for one in documents:
            raw = one.text.encode("utf-8", "surrogatepass")
            self._hashes.append(content_hash(raw))
            self._ids.append(one.id.encode("utf-8", "surrogatepass"))
            source = str(one.metadata.get("source") or UNKNOWN)
            self._source.append(self._sources.setdefault(source, len(self._sources)))
            self._bytes.append(len(raw))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order of the column `source`."""
        return list(self._sources)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Content hash [D, 2] (as big-endian numbers, first half first), source, bytes, ids and where they end [D]."""
        return {
            "hash": np.frombuffer(b"".join(self._hashes), ">u8").reshape(-1, 2).astype(np.uint64),
            "source": np.array(self._source, np.uint32),
            "bytes": np.array(self._bytes, np.int64),
            "ids": np.frombuffer(b"".join(self._ids), np.uint8),
            "id_ends": np.cumsum([len(one) for one in self._ids], dtype=np.int64),
        }


def content_hash(raw: bytes) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(raw, digest_size=16).digest()


def batched(documents: Iterable[Document], characters: int = 0) -> Iterator[list[Document]]:
    """Documents in lists of some millions of characters, so that what is made of a list is bounded.

    How they are cut changes nothing.
    """
    most = characters or BATCH_CHARACTERS
    batch: list[Document] = []
    size = 0
    for one in documents:
        batch.append(one)
        size += len(one.text) + 1
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_keys(
    path: Path, described: str, table: Table, keys: Hashes, rows: NDArray[np.uint32], more: Mapping[str, Any] = {}
) -> None:
    """Write a part: for each band `keys` [bands, S] of the documents `rows` [S] that have any, sorted by key.

    `described` is all that the keys depend on; `more` has arrays besides.
    """
    order = np.argsort(keys, axis=1, kind="stable")
    arrays = {
        **table.columns(),
        "keys": np.take_along_axis(keys, order, axis=1),
        "rows": rows[order].astype(np.uint32),
        **more,
    }
    facts = {"described": described, "sources": table.sources, "documents": len(table), "keyed": len(rows)}
    write_arrays(path, KIND, facts, arrays)


@dataclass(frozen=True)
class Part:
    """An open part; its first document has the number `first`."""

    data: Arrays
    first: int
    known: bool = False
    """Kept before: it is compared with, and never dropped."""

    @property
    def documents(self) -> int:
        """How many it has."""
        return len(self.data["source"])

    @property
    def path(self) -> Path:
        """Its file."""
        return self.data.path

    def id_of(self, row: int) -> str:
        """The id of its document `row`."""
        ends = self.data["id_ends"]
        raw = bytes(self.data["ids"][int(ends[row - 1]) if row else 0 : int(ends[row])])
        return raw.decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Parts:
    """All parts, those known before in front."""

    parts: tuple[Part, ...]
    firsts: Places = field(repr=False)
    """The number of each part's first document, and one past the last document [P + 1]."""

    @property
    def documents(self) -> int:
        """How many documents there are in all."""
        return int(self.firsts[-1])

    @property
    def known(self) -> int:
        """How many of them were known before: those with the smallest numbers."""
        return sum(part.documents for part in self.parts if part.known)

    def place(self, number: int) -> tuple[Part, int]:
        """The part and the row of a document."""
        part = self.parts[int(np.searchsorted(self.firsts, number, "right")) - 1]
        return part, number - part.first

    def id_of(self, number: int) -> str:
        """The id of a document."""
        part, row = self.place(number)
        return part.id_of(row)

    def ids_of(self, numbers: Places) -> list[str]:
        """The ids of documents."""
        result = [""] * len(numbers)
        owner = np.searchsorted(self.firsts, numbers, "right") - 1
        for index in np.unique(owner).tolist():
            part, mine = self.parts[index], np.flatnonzero(owner == index)
            rows, ends, held = numbers[mine] - self.parts[index].first, part.data["id_ends"], part.data["ids"]
            begins = np.where(rows > 0, ends[np.maximum(rows - 1, 0)], 0).tolist()
            for at, begin, end in zip(mine.tolist(), begins, ends[rows].tolist(), strict=True):
                result[at] = held[begin:end].tobytes().decode("utf-8", "surrogatepass")
        return result

    def column(self, name: str, numbers: Places) -> NDArray[Any]:
        """A column's values of some documents."""
        result = np.zeros((len(numbers), *self.parts[0].data[name].shape[1:]), self.parts[0].data[name].dtype)
        owner = np.searchsorted(self.firsts, numbers, "right") - 1
        for index in np.unique(owner).tolist():
            mine = owner == index
            result[mine] = self.parts[index].data[name][numbers[mine] - self.parts[index].first]
        return result

    def sources(self, numbers: Places) -> tuple[NDArray[np.int64], list[str]]:
        """Of some documents the source, as an index into names in alphabetical order."""
        names = sorted({name for part in self.parts for name in part.data.facts["sources"]})
        index = {name: at for at, name in enumerate(names)}
        result = np.zeros(len(numbers), np.int64)
        owner = np.searchsorted(self.firsts, numbers, "right") - 1
        for at in np.unique(owner).tolist():
            part, mine = self.parts[at], owner == at
            named = np.array([index[name] for name in part.data.facts["sources"]], np.int64)
            result[mine] = named[part.data["source"][numbers[mine] - part.first]]
        return result, names


def open_parts(paths: Sequence[Path], described: str, known: Sequence[Path] = ()) -> Parts:
    """Open parts, and such as were `known` before. Raises `UserError` where one is damaged, or made in another way."""
    if not paths and not known:
        raise ValueError("no part to open")
    parts, first = [], 0
    for path, old in [*((path, True) for path in known), *((path, False) for path in paths)]:
        data = read_arrays(path, KIND, sealed=old)
        made = data.facts.get("described")
        if made != described:
            raise UserError(
                "corpus/keys-made-otherwise",
                f"{path} was made with {made}, and this is {described}: make it again, or set the same fields",
            )
        parts.append(Part(data, first, old))
        first += parts[-1].documents
    if first > MOST:
        raise UserError(
            "corpus/too-many-documents", f"{first:,} documents are more than {MOST:,}: deduplicate a part at a time"
        )
    firsts = np.array([*(part.first for part in parts), first], np.int64)
    return Parts(tuple(parts), firsts)

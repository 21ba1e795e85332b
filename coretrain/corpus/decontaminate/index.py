"""The index: hashes of all n-grams of benchmarks, sorted, and the words that they stand for. Made once, and kept.

An item of fewer than n words is looked for as a whole, where it has at least `shortest` words; below that it would be
found everywhere, and how many such items there are is told. Source of 13 and 8: Brown et al. 2020 (GPT-3), appendix C.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of
from coretrain.base.parse import shown
from coretrain.corpus.decontaminate.benchmarks import Item, items, name_of
from coretrain.corpus.dedup.arrays import Arrays, read_arrays, write_arrays
from coretrain.corpus.dedup.lookup import Lookup
from coretrain.corpus.dedup.words import FOLDING, Hashes, Ragged, folded, ngrams, words

KIND = "n-grams of benchmarks"
ITEMS_AT_A_TIME = 4096
MOST_LENGTHS = 64


@dataclass(frozen=True)
class Grams:
    """What is looked for. Raises `UserError`."""

    n: int = field(default=13, metadata={"meaning": "words of an n-gram"})
    shortest: int = field(default=8, metadata={"meaning": "words of an item that is still looked for as a whole"})

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 1000:
            raise UserError("corpus/decontaminate-n", f"decontaminate.n = {shown(self.n)}: give 1 to 1000 words")
        if not max(1, self.n - MOST_LENGTHS) <= self.shortest <= self.n:
            raise UserError(
                "corpus/decontaminate-shortest",
                f"decontaminate.shortest = {shown(self.shortest)}: give a number from {max(1, self.n - MOST_LENGTHS)} "
                f"to decontaminate.n = {self.n}",
            )


@dataclass(frozen=True)
class Index:
    """An open index."""

    data: Arrays

    @property
    def grams(self) -> Grams:
        """What it was made for."""
        return Grams(int(self.data.facts["n"]), int(self.data.facts["shortest"]))

    @property
    def benchmarks(self) -> list[Mapping[str, Any]]:
        """Of each: name, SHA-256 of its file, items, and how many are too short to be found."""
        return list(self.data.facts["benchmarks"])

    @functools.cached_property
    def lengths(self) -> list[int]:
        """How many words the n-grams have, each length once, the longest first."""
        return sorted({int(one) for one in np.unique(self.data["lengths"])}, reverse=True)

    @functools.cached_property
    def by_length(self) -> Mapping[int, tuple[Lookup, NDArray[np.int64]]]:
        """Of each length the hashes, and which entry of the index each is."""
        found = {}
        for length in self.lengths:
            mine = np.flatnonzero(self.data["lengths"] == length)
            found[length] = (Lookup(np.asarray(self.data["hashes"][mine])), mine)
        return found

    def words(self, entry: int) -> list[str]:
        """The folded words of an entry."""
        item, first = int(self.data["items"][entry]), int(self.data["firsts"][entry])
        return self.item(item)[first : first + int(self.data["lengths"][entry])]

    def item(self, item: int) -> list[str]:
        """The folded words of an item."""
        ends = self.data["text_ends"]
        begin = int(ends[item - 1]) if item else 0
        return bytes(self.data["texts"][begin : int(ends[item])]).decode().split(" ")

    def place(self, item: int) -> tuple[str, int, str]:
        """Benchmark, row and field of an item."""
        benchmark = self.benchmarks[int(self.data["benchmark"][item])]
        return benchmark["name"], int(self.data["rows"][item]), benchmark["fields"][int(self.data["fields"][item])]


def write_index(
    files: Sequence[Path], path: Path, grams: Grams | None = None, fields: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Make the index of some benchmarks. Returns what it says of each: items, and how many are too short.

    The same files give the same bytes, in whatever order. Raises `UserError`, also where there is nothing to look for.
    """
    grams = grams or Grams()
    told: list[dict[str, Any]] = []
    tables = _Tables()
    names = [name_of(one) for one in files]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError("corpus/benchmark-twice", f"two benchmarks are called {shown(twice)}: rename one of the files")
    for file in sorted(files, key=name_of):
        before, short = len(tables.rows), 0
        known: dict[str, int] = {}
        waiting: list[Item] = []
        for item in items(file, fields):
            known.setdefault(item.field, len(known))
            waiting.append(item)
            if len(waiting) == ITEMS_AT_A_TIME:
                short += tables.add(waiting, len(told), known, grams)
                waiting = []
        short += tables.add(waiting, len(told), known, grams)
        count = len(tables.rows) - before
        one = {"name": name_of(file), "sha256": sha256_of(file), "items": count + short, "too_short": short}
        told.append({**one, "fields": list(known)})
    arrays = tables.arrays()
    if not len(arrays["hashes"]):
        raise UserError(
            "corpus/benchmarks-empty",
            f"{', '.join(names) or 'no file'}: no text has {grams.shortest} words, and there is nothing to look for: "
            "give other benchmarks, or lower decontaminate.shortest",
        )
    facts = {"n": grams.n, "shortest": grams.shortest, "folding": FOLDING, "benchmarks": told}
    write_arrays(path, KIND, facts, arrays)
    return told


class _Tables:
    """What an index is made of, as it grows. Items that are too short are left out."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self._benchmark: list[int] = []
        self._fields: list[int] = []
        self._texts: list[bytes] = []
        self._found: list[tuple[Hashes, ...]] = []

    def add(self, batch: Sequence[Item], benchmark: int, fields: Mapping[str, int], grams: Grams) -> int:
        """Take in some items of a benchmark; how many are too short."""
        hashes = words([one.text for one in batch]).hashes
        long = hashes.counts >= grams.shortest
        texts = folded([one.text for one, kept in zip(batch, long.tolist(), strict=True) if kept])
        kept = [one for one, some in zip(batch, long.tolist(), strict=True) if some]
        sizes = hashes.counts[long]
        hashes = Ragged(hashes.values[np.repeat(long, hashes.counts)], np.concatenate([[0], np.cumsum(sizes)]))
        for length in range(grams.shortest, grams.n + 1):
            mine = sizes == length if length < grams.n else sizes >= length
            found = ngrams(hashes, length)
            owner = np.repeat(np.arange(len(sizes)), found.counts)
            first = np.arange(len(found.values)) - found.starts[owner]
            some = mine[owner]
            count = np.full(int(some.sum()), length)
            item = owner[some] + len(self.rows)
            every = (found.values[some], count, item, first[some], np.full(len(item), benchmark))
            self._found.append(tuple(np.asarray(one, np.uint64) for one in every))
        self.rows += [one.row for one in kept]
        self._benchmark += [benchmark] * len(kept)
        self._fields += [fields[one.field] for one in kept]
        self._texts += [one.encode() for one in texts]
        return len(batch) - len(kept)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """An entry for each n-gram and benchmark that has it (the first item there), sorted by length and hash."""
        hashes, lengths, item, first, benchmark = (
            np.concatenate([np.zeros(0, np.uint64), *(one[at] for one in self._found)]) for at in range(5)
        )
        order = np.lexsort((first, item, benchmark, hashes, lengths))
        keys = np.stack([lengths, hashes, benchmark])[:, order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
        order = order[new]
        return {
            "hashes": hashes[order],
            "lengths": lengths[order].astype(np.uint32),
            "items": item[order].astype(np.uint32),
            "firsts": first[order].astype(np.uint32),
            "benchmark": np.array(self._benchmark, np.uint32),
            "rows": np.array(self.rows, np.uint32),
            "fields": np.array(self._fields, np.uint32),
            "texts": np.frombuffer(b"".join(self._texts), np.uint8),
            "text_ends": np.cumsum([len(one) for one in self._texts], dtype=np.int64),
        }


def read_index(path: Path) -> Index:
    """Open an index; all its bytes are checked. Raises `UserError` where it is damaged or made with other words."""
    data = read_arrays(path, KIND, sealed=True)
    if data.facts.get("folding") != FOLDING:
        raise UserError(
            "corpus/index-made-otherwise",
            f"{path} was made with {data.facts.get('folding')}, and this is {FOLDING}: make it again",
        )
    return Index(data)

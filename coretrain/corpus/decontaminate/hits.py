"""Where a benchmark's n-grams stand in documents. A hash only leads there: what counts is that the words are equal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.files import write_atomically
from coretrain.corpus.decontaminate.index import Index
from coretrain.corpus.dedup.words import Words, folded, ngrams, words

SHOWN = 200
"""Characters of a document that are kept of a hit, to look at."""


@dataclass(frozen=True)
class Hit:
    """Words of a benchmark in a document: hits that touch, of the same benchmark, are one."""

    begin: int
    end: int
    """In characters of the document."""
    benchmark: str
    row: int
    field: str
    """Of the benchmark: where the first of its n-grams is from."""
    ngrams: int
    """How many of the benchmark's n-grams, one after another."""


def find(texts: Sequence[str], index: Index) -> list[list[Hit]]:
    """The hits in each text, by where they begin."""
    found = words(texts)
    hits: list[list[Hit]] = [[] for _ in texts]
    for length in index.lengths:
        for document, places in _matches(found, texts, index, length).items():
            hits[document] += places
    return [_joined(one) for one in hits]


def _matches(found: Words, texts: Sequence[str], index: Index, length: int) -> dict[int, list[Hit]]:
    """Hits of n-grams of one length, by document; one hit each."""
    lookup, entries = index.by_length[length]
    grams = ngrams(found.hashes, length)
    where, low, high = lookup.find(grams.values)
    owner = np.searchsorted(grams.starts, where, "right") - 1
    result: dict[int, list[Hit]] = {}
    for place, document, since, until in zip(where.tolist(), owner.tolist(), low.tolist(), high.tolist(), strict=True):
        first = int(found.hashes.starts[document] + place - grams.starts[document])
        begin, end = int(found.begins[first]), int(found.ends[first + length - 1])
        plain = folded([texts[document][begin:end]])[0].split(" ")
        for entry in entries[since:until].tolist():
            if index.words(entry) == plain:
                name, row, field = index.place(int(index.data["items"][entry]))
                result.setdefault(document, []).append(Hit(begin, end, name, row, field, 1))
    return result


def _joined(hits: list[Hit]) -> list[Hit]:
    """Overlapping hits of the same benchmark as one."""
    made: list[Hit] = []
    last: dict[str, int] = {}
    for one in sorted(hits, key=lambda hit: (hit.begin, hit.end, hit.benchmark, hit.row, hit.field)):
        at = last.get(one.benchmark)
        if at is not None and one.begin < made[at].end:
            held = made[at]
            made[at] = Hit(
                held.begin, max(held.end, one.end), held.benchmark, held.row, held.field, held.ngrams + one.ngrams
            )
        else:
            last[one.benchmark] = len(made)
            made.append(one)
    return made


def write_hits(path: Path, documents: Iterable[tuple[str, str, Sequence[Hit]]]) -> dict[str, Any]:
    """Write a line of JSON for each hit of (id, text, hits): where, what of, and the words.

    Returns counts by benchmark: documents, hits, n-grams.
    """
    lines: list[str] = []
    counts: dict[str, Counter[str]] = {}
    for name, text, hits in documents:
        for hit in hits:
            words_ = text[hit.begin : hit.end][:SHOWN]
            lines.append(json.dumps({"id": name, **asdict(hit), "text": words_}, ensure_ascii=False) + "\n")
            count = counts.setdefault(hit.benchmark, Counter())
            count["hits"] += 1
            count["ngrams"] += hit.ngrams
        for benchmark in {hit.benchmark for hit in hits}:
            counts[benchmark]["documents"] += 1
    write_atomically(path, *(line.encode("utf-8", "surrogatepass") for line in lines))
    return {benchmark: dict(counts[benchmark]) for benchmark in sorted(counts)}


def summed(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts by benchmark of several parts."""
    total: dict[str, Counter[str]] = {}
    for table in tables:
        for name, counts in table.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(total[name]) for name in sorted(total)}

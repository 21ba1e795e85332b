"""Candidates: documents that share a band. A band's keys are looked at by ranges, so that each range fits in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coretrain.corpus.dedup.arrays import read_arrays, write_arrays
from coretrain.corpus.dedup.minhash import MinHash, band_keys, sign
from coretrain.corpus.dedup.pairs import merged, same_key
from coretrain.corpus.dedup.parts import Part, Parts, Table, batched, write_keys
from coretrain.corpus.dedup.words import Hashes, Places
from coretrain.corpus.document import Document

KIND = "pairs of documents"
BYTES_A_KEY = 160
"""Memory that a key takes while its range is sorted, where 8 documents share each; 64 where none do."""


@dataclass(frozen=True)
class Signed:
    """What was signed."""

    documents: int
    short: int
    """Documents of fewer words than a shingle has: they have no signature, and only exact copies are found."""


def sign_part(documents: Iterable[Document], path: Path, form: MinHash) -> Signed:
    """Write the keys of a part's documents. Memory: some bytes a document, and one batch of texts."""
    table = Table()
    keys, rows, first = [], [], 0
    for batch in batched(documents):
        table.add(batch)
        signed, some = sign([one.text for one in batch], form)
        keys.append(band_keys(signed[some], form))
        rows.append(first + np.flatnonzero(some))
        first += len(batch)
    every = np.concatenate(keys, axis=1) if keys else np.zeros((form.bands, 0), np.uint64)
    signed_rows = np.concatenate(rows).astype(np.uint32) if rows else np.zeros(0, np.uint32)
    write_keys(path, form.described, table, every, signed_rows)
    return Signed(len(table), len(table) - len(signed_rows))


def ranges(documents: int, memory: int) -> int:
    """How many ranges a band's keys are cut into, so that a task takes about `memory` bytes at most."""
    return max(1, -(-documents * BYTES_A_KEY // memory))


def tasks(form: MinHash, pieces: int) -> Iterator[tuple[int, int]]:
    """Every (band, range) that `candidates` must be asked for."""
    return ((band, piece) for band in range(form.bands) for piece in range(pieces))


def candidates(parts: Parts, band: int, piece: int, pieces: int) -> tuple[Hashes, int]:
    """Pairs of documents with the same key in a band, of the keys of one range; and how many are in large groups.

    Two documents that were known before are no pair.
    """
    keys, numbers = keys_within(parts, band, piece, pieces)
    pairs, led = same_key(keys, numbers, lambda group: by_content(parts, group))
    return pairs[(pairs & np.uint64(2**32 - 1)) >= np.uint64(parts.known)], led


def keys_within(parts: Parts, band: int, piece: int, pieces: int) -> tuple[Hashes, Places]:
    """Keys of a band between piece / pieces and (piece + 1) / pieces of 2^64, and their documents."""
    keys, numbers = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for part, mine in slices(parts, band, piece, pieces):
        keys.append(part.data["keys"][band][mine])
        numbers.append(part.data["rows"][band][mine].astype(np.int64) + part.first)
    return np.concatenate(keys), np.concatenate(numbers)


def slices(parts: Parts, band: int, piece: int, pieces: int) -> Iterator[tuple[Part, slice]]:
    """Where each part has its keys of a range: they are sorted."""
    low, high = (2**64 * piece // pieces, 2**64 * (piece + 1) // pieces - 1)
    for part in parts.parts:
        column = part.data["keys"][band]
        begin = int(np.searchsorted(column, np.uint64(low)))
        yield part, slice(begin, int(np.searchsorted(column, np.uint64(high), "right")))


def by_content(parts: Parts, group: Places) -> Places:
    """Positions of documents in the order of their texts' hashes; of equal texts any order leads to the same pairs."""
    hashes = parts.column("hash", group)
    rank = np.empty(len(group), np.int64)
    rank[np.lexsort((hashes[:, 1], hashes[:, 0]))] = np.arange(len(group))
    return rank


def write_pairs(path: Path, pairs: Hashes) -> None:
    """Keep a list of pairs in a file."""
    write_arrays(path, KIND, {}, {"pairs": pairs})


def read_pairs(paths: Iterable[Path]) -> Hashes:
    """All pairs of several files, each once."""
    return merged(read_arrays(path, KIND)["pairs"] for path in paths)

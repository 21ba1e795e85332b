"""Near-duplicates, stage by stage. Each stage is a function from files to a file, so that any engine can run its tasks:

    sign        a part's documents          -> keys               for each part
    pair        all keys                    -> pairs              for each band, and each range of its keys
    gather      all pairs                   -> pairs, each once; rows of each part
    shingle     a part's documents, rows    -> sets of shingles   for each part
    verify      pairs, sets                 -> pairs that are duplicates, for each slice of the pairs
    decide      those pairs                 -> which documents are kept

Between stages there are files alone. `near_duplicates` runs them one after another in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.corpus.dedup.arrays import read_arrays, write_arrays
from coretrain.corpus.dedup.bands import KIND as PAIRS
from coretrain.corpus.dedup.bands import candidates, ranges, read_pairs, sign_part, tasks, write_pairs
from coretrain.corpus.dedup.keep import Kept, keep
from coretrain.corpus.dedup.minhash import MinHash
from coretrain.corpus.dedup.pairs import unpacked
from coretrain.corpus.dedup.parts import Parts, open_parts
from coretrain.corpus.dedup.verify import open_sets, verified, wanted, write_shingles
from coretrain.corpus.document import Document

ROWS = "rows of documents"
MEMORY = 2**30
Opened = Callable[[], Iterable[Document]]
"""Starts a fresh pass over a part's documents, always in the same order."""


@dataclass(frozen=True)
class Indexed:
    """Documents that were kept before: their keys and their sets of shingles, one file of each for each part."""

    keys: tuple[Path, ...] = ()
    shingles: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Near:
    """A search for near-duplicates: its fields, and what it is compared with."""

    form: MinHash = field(default_factory=MinHash)
    known: Indexed = field(default_factory=Indexed)

    def open(self, keys: Sequence[Path]) -> Parts:
        """The parts whose keys these are, after those known before. Raises `UserError`."""
        return open_parts(keys, self.form.described, self.known.keys)


def pair(near: Near, keys: Sequence[Path], band: int, piece: int, pieces: int, path: Path) -> None:
    """Write the pairs of documents that share a key of this band, of one range."""
    pairs, led = candidates(near.open(keys), band, piece, pieces)
    write_arrays(path, PAIRS, {"led": led}, {"pairs": pairs})


def gather(near: Near, keys: Sequence[Path], found: Sequence[Path], path: Path, rows: Sequence[Path]) -> dict[str, int]:
    """Write all pairs, each once, to `path`; and for each new part to one of `rows` which of its documents are in one.

    Returns counts: pairs, and documents in groups too large for all of their pairs, by band.
    """
    parts, pairs = near.open(keys), read_pairs(found)
    write_pairs(path, pairs)
    for one, target in zip(wanted(parts, pairs)[len(near.known.keys) :], rows, strict=True):
        write_arrays(target, ROWS, {}, {"rows": one})
    led = sum(int(read_arrays(one, PAIRS).facts["led"]) for one in found)
    return {"candidates": len(pairs), "in_large_groups": led}


def shingle(near: Near, documents: Iterable[Document], rows: Path, path: Path) -> None:
    """Write the sets of shingles of those documents of a part that are in a pair."""
    write_shingles(documents, np.asarray(read_arrays(rows, ROWS)["rows"]), path, near.form)


def verify(
    near: Near, keys: Sequence[Path], shingles: Sequence[Path], pairs: Path, piece: int, pieces: int, path: Path
) -> None:
    """Write those pairs, of one of `pieces` slices, whose true similarity reaches the threshold."""
    parts = near.open(keys)
    sets = open_sets(parts, [*near.known.shingles, *shingles], near.form)
    every = read_arrays(pairs, PAIRS)["pairs"]
    mine = np.asarray(every[len(every) * piece // pieces : len(every) * (piece + 1) // pieces])
    write_pairs(path, mine[verified(sets, mine, near.form.threshold)])


def decide(near: Near, keys: Sequence[Path], found: Sequence[Path], priority: Sequence[str] = ()) -> Kept:
    """Which documents are kept, by the pairs that were verified."""
    left, right = unpacked(read_pairs(found))
    return keep(near.open(keys), left, right, priority)


def index_part(documents: Opened, keys: Path, shingles: Path, form: MinHash) -> None:
    """Write what later data can be compared with: `documents` are those of a part that were kept."""
    sign_part(documents(), keys, form)
    write_shingles(documents(), None, shingles, form)


def near_duplicates(
    parts: Sequence[Opened],
    folder: Path,
    near: Near,
    priority: Sequence[str] = (),
    memory: int = MEMORY,
) -> tuple[Kept, dict[str, Any]]:
    """Run every stage in this process, in `folder`, with about `memory` bytes at most besides some a document.

    Returns what is kept, and numbers for a report.
    """
    keys = [folder / f"keys-{index:05d}" for index in range(len(parts))]
    signed = [sign_part(one(), path, near.form) for one, path in zip(parts, keys, strict=True)]
    pieces = ranges(near.open(keys).documents, memory)
    found = []
    for band, piece in tasks(near.form, pieces):
        found.append(folder / f"pairs-{band:03d}-{piece:05d}")
        pair(near, keys, band, piece, pieces, found[-1])
    rows = [folder / f"rows-{index:05d}" for index in range(len(parts))]
    counts = gather(near, keys, found, folder / "pairs", rows)
    shingles = [folder / f"shingles-{index:05d}" for index in range(len(parts))]
    for one, row, path in zip(parts, rows, shingles, strict=True):
        shingle(near, one(), row, path)
    verify(near, keys, shingles, folder / "pairs", 0, 1, folder / "verified")
    kept = decide(near, keys, [folder / "verified"], priority)
    return kept, {
        "documents": sum(one.documents for one in signed),
        "short": sum(one.short for one in signed),
        **counts,
        "verified": len(read_pairs([folder / "verified"])),
        **kept.summary(),
    }

"""SimHash: 64 bits, of which similar documents differ in few. Sources: Charikar 2002; tables: Manku et al. 2007.

Each bit says whether most of a document's shingles have it. Documents at most `distance` bits apart are duplicates.
Of distance + 2 blocks of bits two at least are untouched then: for each two there is a table of documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.dedup.bands import candidates
from coretrain.corpus.dedup.keep import Kept, keep
from coretrain.corpus.dedup.pairs import merged, unpacked
from coretrain.corpus.dedup.parts import Parts, Table, batched, open_parts, write_keys
from coretrain.corpus.dedup.shingles import Shingling, shingles
from coretrain.corpus.dedup.words import Hashes, Ragged, mixed
from coretrain.corpus.document import Document

BITS = 64
MOST_BITS = 8
"""In which duplicates may differ: each more makes more tables."""
SHINGLES_AT_A_TIME = 2**17


@dataclass(frozen=True)
class SimHash:
    """How documents are compared. Raises `UserError`."""

    shingling: Shingling = field(default_factory=lambda: Shingling(3))
    distance: int = field(default=3, metadata={"meaning": "bits in which two duplicates may differ"})

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= MOST_BITS:
            raise UserError(
                "corpus/simhash-distance",
                f"dedup.simhash_distance = {shown(self.distance)}: give 0 to {MOST_BITS} bits",
            )

    @property
    def described(self) -> str:
        """All that a key depends on."""
        return f"{self.shingling.described}, simhash, {self.distance} bits"

    def masks(self) -> Hashes:
        """Bits of each table [T]."""
        borders = [BITS * block // (self.distance + 2) for block in range(self.distance + 3)]
        blocks = [(1 << end) - (1 << begin) for begin, end in itertools.pairwise(borders)]
        return np.array([one | two for one, two in itertools.combinations(blocks, 2)], np.uint64)


def simhashes(found: Ragged) -> Hashes:
    """One number of 64 bits for each document [D] by its shingles, repeats counted; 0 where there are none.

    A bit that just half of them have is 0.
    """
    votes = np.zeros((len(found.starts) - 1, BITS), np.int64)
    some = np.flatnonzero(found.counts)
    starts = found.starts[:-1][some]
    for begin in range(0, len(found.values), SHINGLES_AT_A_TIME):
        block = found.values[begin : begin + SHINGLES_AT_A_TIME]
        first = int(np.searchsorted(starts, begin, "right")) - 1
        last = int(np.searchsorted(starts, begin + len(block)))
        bits = np.unpackbits(block.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        votes[some[first:last]] += np.add.reduceat(bits, np.maximum(starts[first:last] - begin, 0), 0, np.int64)
    packed = np.packbits(2 * votes > found.counts[:, None], axis=1, bitorder="little")
    return packed.reshape(-1).view("<u8").astype(np.uint64)


def simhash_part(documents: Iterable[Document], path: Path, form: SimHash) -> int:
    """Write the keys of a part's documents. Returns how many are too short to have any."""
    table, values, rows = Table(), [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for batch in batched(documents):
        found = shingles([one.text for one in batch], form.shingling)
        values.append(simhashes(found))
        rows.append(np.flatnonzero(found.counts) + len(table))
        table.add(batch)
    every, signed = np.concatenate(values), np.concatenate(rows)
    keys = mixed(every[signed] & form.masks()[:, None])
    write_keys(path, form.described, table, keys, signed.astype(np.uint32), {"simhash": every})
    return len(table) - len(signed)


def near(parts: Parts, form: SimHash, table: int, piece: int = 0, pieces: int = 1) -> tuple[Hashes, int]:
    """Pairs at most `distance` bits apart that meet in this table, of one range of its keys; and how many documents are
    in groups too large for all of their pairs."""
    pairs, led = candidates(parts, table, piece, pieces)
    left, right = (parts.column("simhash", side) for side in unpacked(pairs))
    return pairs[np.bitwise_count(left ^ right) <= form.distance], led


def simhash_duplicates(
    keys: Sequence[Path],
    form: SimHash,
    known: Sequence[Path] = (),
    priority: Sequence[str] = (),
    pieces: int = 1,
) -> tuple[Kept, int]:
    """What is kept, and how many documents were in groups too large; `keys` were written by `simhash_part`."""
    parts = open_parts(keys, form.described, known)
    found = [near(parts, form, table, piece, pieces) for table in range(len(form.masks())) for piece in range(pieces)]
    left, right = unpacked(merged(pairs for pairs, _ in found))
    return keep(parts, left, right, priority), sum(led for _, led in found)

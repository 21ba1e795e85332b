"""Documents whose whole text is the same, after folding or as it stands: equal 128-bit hashes.

Stages as for near-duplicates: `digest_part` for each part, `equal` for each range of keys, then `keep`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.corpus.dedup.bands import keys_within
from coretrain.corpus.dedup.keep import Kept, keep
from coretrain.corpus.dedup.pairs import merged, packed, unpacked
from coretrain.corpus.dedup.parts import Parts, Table, batched, content_hash, open_parts, write_keys
from coretrain.corpus.dedup.words import FOLDING, Hashes, folded
from coretrain.corpus.document import Document

COMPARED = ("words", "text")


def described(compared: str) -> str:
    """All that a document's key depends on. Raises `UserError` for another word than `words` or `text`."""
    if compared not in COMPARED:
        raise UserError(
            "corpus/exact-unknown",
            f"{meant(str(compared), COMPARED)}dedup.exact = {shown(compared)}: use one of {', '.join(COMPARED)}",
        )
    return "whole text" if compared == "text" else f"whole text, {FOLDING}"


def digest_part(documents: Iterable[Document], path: Path, compared: str = "words") -> int:
    """Write the hashes of a part's documents: of their folded `words`, or of the `text` to the last byte.

    Returns how many have no words at all: those are never taken for copies of each other.
    """
    made = described(compared)
    table, digests, rows = Table(), [], []
    for batch in batched(documents):
        before = len(table)
        table.add(batch)
        texts = [one.text for one in batch]
        plain = folded(texts) if compared == "words" else texts
        rows += [before + at for at, one in enumerate(plain) if one]
        digests += [content_hash(one.encode("utf-8", "surrogatepass")) for one in plain if one]
    halves = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)
    digest = np.zeros((len(table), 2), np.uint64)
    digest[rows] = halves
    write_keys(path, made, table, halves[:, :1].T, np.array(rows, np.uint32), {"digest": digest})
    return len(table) - len(rows)


def equal(parts: Parts, piece: int = 0, pieces: int = 1) -> Hashes:
    """Pairs that hang all equal documents together, of one of `pieces` ranges of keys."""
    _, numbers = keys_within(parts, 0, piece, pieces)
    digest = parts.column("digest", numbers)
    order = np.lexsort((numbers, digest[:, 1], digest[:, 0]))
    numbers, digest = numbers[order], digest[order]
    same = np.all(digest[1:] == digest[:-1], axis=1)
    return packed(numbers[:-1][same], numbers[1:][same])


def exact_duplicates(
    keys: Sequence[Path],
    compared: str = "words",
    known: Sequence[Path] = (),
    priority: Sequence[str] = (),
    pieces: int = 1,
) -> Kept:
    """What is kept where of equal documents one stays; `keys` were written by `digest_part`, those `known` earlier."""
    parts = open_parts(keys, described(compared), known)
    left, right = unpacked(merged(equal(parts, piece, pieces) for piece in range(pieces)))
    return keep(parts, left, right, priority)

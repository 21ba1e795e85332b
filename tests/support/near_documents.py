"""Documents planted with a known Jaccard similarity, and what a search for duplicates finds among them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.corpus.dedup.keep import Kept, write_clusters
from coretrain.corpus.dedup.minhash import MinHash
from coretrain.corpus.dedup.near import Indexed, Near, near_duplicates
from coretrain.corpus.document import Document

WORDS = ["".join(letters) for letters in itertools.product("bcdfgklmnprstv", "aeiou", "bcdfgklmnprstv", "aeiou")]
"""4,900 words that fold to themselves."""


def text(draw: random.Random, length: int) -> str:
    """So many random words."""
    return " ".join(draw.choices(WORDS, k=length))


def pair_of(draw: random.Random, shared: int, own: int) -> tuple[str, str]:
    """Two texts with `shared` 1-shingles in common and `own` more each, all different: Jaccard shared / (shared + 2
    own)."""
    words = draw.sample(WORDS, shared + 2 * own)
    both, one, two = words[:shared], words[shared : shared + own], words[shared + own :]
    first, second = both + one, both + two
    draw.shuffle(first)
    draw.shuffle(second)
    return " ".join(first), " ".join(second)


def jaccard(one: str, two: str, n: int = 5) -> float:
    """Of the sets of n-grams of words, in plain Python; the texts are folded already."""
    sets = []
    for words in (one.split(), two.split()):
        sets.append({tuple(words[at : at + n]) for at in range(len(words) - n + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(draw: random.Random, original: str, changes: int) -> str:
    """The text with so many of its words replaced by others."""
    words = original.split()
    for at in draw.sample(range(len(words)), changes):
        words[at] = draw.choice([word for word in WORDS[:50] if word != words[at]])
    return " ".join(words)


def family(seed: int, originals: int, copies: int, sources: Sequence[str] = ("web", "wiki", "books")) -> list[Document]:
    """Random documents, some with near copies, in a random order; ids `N` and `N.COPY`."""
    draw = random.Random(seed)
    made = []
    for number in range(originals):
        original = text(draw, 60)
        made.append(Document(f"{number}", original, {"source": draw.choice(list(sources))}))
        for copy in range(copies if number % 3 == 0 else 0):
            made.append(Document(f"{number}.{copy}", edited(draw, original, 1), {"source": draw.choice(list(sources))}))
    draw.shuffle(made)
    return made


def parts_of(documents: Sequence[Document], parts: int) -> list[Any]:
    """The documents cut into so many parts, each read anew when it is asked for."""
    cuts = [len(documents) * part // parts for part in range(parts + 1)]
    return [lambda begin=begin, end=end: iter(documents[begin:end]) for begin, end in itertools.pairwise(cuts)]


def search(
    folder: Path,
    documents: Sequence[Document],
    parts: int = 1,
    form: MinHash | None = None,
    known: Indexed | None = None,
    **more: Any,
) -> tuple[Kept, dict[str, Any]]:
    """Look for near-duplicates in a fresh folder."""
    folder.mkdir(parents=True)
    return near_duplicates(parts_of(documents, parts), folder, Near(form or MinHash(), known or Indexed()), **more)


def kept_ids(kept: Kept) -> set[str]:
    """Ids of the documents that stay, of all parts not known before."""
    ids = set()
    for part, (_, rows) in zip([one for one in kept.parts.parts if not one.known], kept.rows(), strict=True):
        ids |= {part.id_of(row) for row in np.flatnonzero(rows).tolist()}
    return ids


def cluster_lines(kept: Kept, path: Path) -> bytes:
    """The table of clusters as it is written."""
    write_clusters(kept, path)
    return path.read_bytes()

"""Lines of text as numbers of words: what an n-gram model is trained on and scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.text.hashes import Hashes, hashes_of
from coretrain.corpus.text.spans import Ints
from coretrain.corpus.text.texts import Texts, blocks

Ids = NDArray[np.int64]
UNKNOWN, BEGIN, END = 0, 1, 2
"""The numbers of <unk>, <s> and </s>; words begin at 3."""
MARKS = ("<unk>", "<s>", "</s>")
_DIGIT = re.compile(r"\d")


def normalized(text: str) -> str:
    """In lower case, every digit a 0: what CCNet does before it scores, but for accents and punctuation."""
    return _DIGIT.sub("0", text.lower())


@dataclass(frozen=True)
class Lines:
    """Lines that have words, as numbers of words, each between BEGIN and END."""

    ids: Ids
    """[T]"""
    starts: Ints
    """[L] Where each begins."""
    documents: Ints
    """[L] The text that each is of."""


def normalized_blocks(texts: Sequence[str]) -> Iterator[Texts]:
    """The normalized texts, in blocks."""
    for _, block in blocks([normalized(text) for text in texts]):
        yield block


def numbered(texts: Texts, vocabulary: Hashes, ids: Ids) -> Lines:
    """The lines of texts. `vocabulary` are sorted hashes of words, `ids` their numbers."""
    words = texts.words
    at = np.searchsorted(vocabulary, texts.word_hashes)
    at = np.minimum(at, max(len(vocabulary) - 1, 0))
    if len(vocabulary):
        found = np.where(vocabulary[at] == texts.word_hashes, ids[at], UNKNOWN)
    else:
        found = np.zeros(len(texts.word_hashes), np.int64)
    first = np.searchsorted(words.starts, texts.lines.starts)
    counts = np.diff(np.append(first, len(words.starts)))
    some = counts > 0
    counts = counts[some]
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts + 2)])
    out = np.full(starts[-1], END, np.int64)
    out[starts[:-1]] = BEGIN
    inner = np.ones(len(out), np.bool_)
    inner[starts[:-1]] = False
    inner[starts[1:] - 1] = False
    out[inner] = found
    return Lines(out, starts[:-1], texts.lines.documents[some])


def vocabulary_of(blocks: Iterator[Texts]) -> list[str]:
    """The different words of normalized texts, sorted."""
    seen: dict[int, str] = {}
    for texts in blocks:
        hashes, first = np.unique(texts.word_hashes, return_index=True)
        whole = "".join(texts.strings)
        for value, index in zip(hashes.tolist(), first.tolist(), strict=True):
            if value not in seen:
                seen[value] = whole[texts.words.starts[index] : texts.words.ends[index]]
    return sorted(seen.values())


def index_of(words: Sequence[str]) -> tuple[Hashes, Ids]:
    """The words' hashes, sorted, and the number of each: its place in `words` behind the three marks."""
    hashes = hashes_of(words)
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.int64) + len(MARKS)

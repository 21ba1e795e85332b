"""Texts as sparse vectors: hashed words and pairs of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coretrain.corpus.perplexity.lines import normalized
from coretrain.corpus.text.hashes import STEP, mixed
from coretrain.corpus.text.texts import blocks


def features(texts: Sequence[str], bits: int, characters: int = 0) -> Any:
    """A matrix [D, 2 ** bits] in CSR form: log(1 + count) of each word and pair of neighbours, rows of length 1.

    Words are in lower case, with every digit a 0. Which column one has is a hash: two may share one. `characters`: how
    many of a text are looked at, 0 for all. A text without words is a row of zeros.
    """
    from scipy import sparse

    rows = []
    for _, block in blocks([normalized(text[:characters] if characters else text) for text in texts]):
        words, hashes = block.words, block.word_hashes
        inner = np.ones(len(hashes), np.bool_)
        inner[words.first[1:][words.counts > 0] - 1] = False  # a text's last word has no neighbour
        pairs = mixed(hashes[:-1] * STEP + hashes[1:])[inner[:-1]] if len(hashes) else hashes
        columns = (np.concatenate([mixed(hashes), pairs]) >> np.uint64(64 - bits)).astype(np.int64)
        owners = np.concatenate([words.documents, words.documents[:-1][inner[:-1]] if len(hashes) else words.documents])
        cells, times = np.unique(owners << bits | columns, return_counts=True)
        values = np.log1p(times)
        owner = cells >> bits
        length = np.sqrt(np.bincount(owner, values * values, minlength=len(block.strings)))
        ends = np.searchsorted(owner, np.arange(len(block.strings) + 1))
        data = values / length[owner]
        rows.append(sparse.csr_matrix((data, cells & (2**bits - 1), ends), shape=(len(block.strings), 2**bits)))
    return sparse.vstack(rows, format="csr") if rows else sparse.csr_matrix((0, 2**bits))

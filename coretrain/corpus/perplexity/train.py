"""Training by interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998), nothing pruned, as KenLM does it.

The largest n counts how often an n-gram occurs, a smaller one how many different words stand before it (or how often,
where it begins a line). Memory: some 170 bytes a word of text, so that 50 million words take 8.5 GB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coretrain.base.errors import UserError
from coretrain.corpus.perplexity.lines import (
    BEGIN,
    MARKS,
    UNKNOWN,
    Ids,
    Lines,
    index_of,
    normalized_blocks,
    numbered,
    vocabulary_of,
)
from coretrain.corpus.perplexity.model import Floats, Model, Table
from coretrain.corpus.text.spans import Ints

_FALLBACK = (0.5, 1.0, 1.5)
"""Discounts where so little text is there that counts of counts give none; KenLM's."""
_NEVER = -99.0
"""log10 of a probability that is never asked for."""


def train(texts: Sequence[str], order: int = 5) -> Model:
    """A model of these texts; their order changes nothing. Raises `UserError` where they have no words."""
    words = vocabulary_of(normalized_blocks(texts))
    if not words:
        raise UserError("corpus/perplexity-no-words", "the text to train perplexity on has no words: name other files")
    index = index_of(words)
    lines = _joined([numbered(block, *index) for block in normalized_blocks(texts)])
    size = len(words) + len(MARKS)
    keys, counts, suffixes = _counted(lines, order, size)
    adjusted = [_adjusted(n, keys, counts, suffixes, size) for n in range(order)]
    return Model(tuple(words), tuple(_tables(keys, adjusted, suffixes, size)))


def _joined(parts: Sequence[Lines]) -> Lines:
    offsets = np.cumsum([0] + [len(part.ids) for part in parts])
    starts = np.concatenate([part.starts + offset for part, offset in zip(parts, offsets[:-1], strict=True)])
    return Lines(np.concatenate([part.ids for part in parts]), starts, np.zeros(len(starts), np.int64))


def _counted(lines: Lines, order: int, size: int) -> tuple[list[Ids], list[Ints], list[Ids]]:
    """For each n the n-grams' keys, how often each occurs, and where its last n - 1 words stand in the table below."""
    ids = lines.ids
    ends = np.append(lines.starts[1:], len(ids))
    rest = np.repeat(ends, ends - lines.starts) - np.arange(len(ids))
    keys, counts, suffixes = [np.arange(size)], [np.bincount(ids, minlength=size)], [np.zeros(size, np.int64)]
    at = ids
    for n in range(2, order + 1):
        places = np.flatnonzero(rest >= n)
        unique, first, inverse, times = np.unique(
            at[places] * size + ids[places + n - 1], return_index=True, return_inverse=True, return_counts=True
        )
        keys.append(unique)
        counts.append(times)
        suffixes.append(at[places[first] + 1])
        at = np.full(len(ids), -1, np.int64)
        at[places] = inverse
    return keys, counts, suffixes


def _adjusted(n: int, keys: list[Ids], counts: list[Ints], suffixes: list[Ids], size: int) -> Ints:
    """The counts that are smoothed: of n-grams of n + 1 words."""
    if n + 1 == len(keys):
        return counts[n]
    before = np.bincount(suffixes[n + 1], minlength=len(keys[n]))
    begins = keys[n]
    for lower in range(n, 0, -1):  # the first word of each
        begins = keys[lower][begins] // size if lower < n else begins // size
    return np.where(begins == BEGIN, counts[n], before)


def discounts(counts: Ints) -> tuple[float, float, float]:
    """What is taken from a count of 1, of 2, and of 3 and more."""
    found = np.bincount(np.minimum(counts, 5), minlength=6).astype(np.float64)
    if (found[1:5] == 0).any():
        return _FALLBACK
    y = found[1] / (found[1] + 2 * found[2])
    out = [k - (k + 1) * y * found[k + 1] / found[k] for k in (1, 2, 3)]
    if not all(0 <= taken <= k for k, taken in enumerate(out, start=1)):
        return _FALLBACK
    return out[0], out[1], out[2]


def _tables(keys: list[Ids], adjusted: list[Ints], suffixes: list[Ids], size: int) -> list[Table]:
    logs: list[Floats] = []
    backoffs: list[Floats] = []
    for n, (numbers, counts) in enumerate(zip(keys, adjusted, strict=True)):
        if n == 0:
            counts = counts.copy()
            counts[BEGIN] = counts[UNKNOWN] = 0  # neither is ever predicted by its count
        taken = np.array([0.0, *discounts(counts[counts > 0])])[np.minimum(counts, 3)]
        context = numbers // size if n else np.zeros(size, np.int64)
        contexts = len(keys[n - 1]) if n else 1
        total = np.bincount(context, counts, minlength=contexts)
        mass = np.bincount(context, taken, minlength=contexts)
        some = total > 0
        gamma = np.ones(contexts)
        gamma[some] = mass[some] / total[some]
        own = (counts - taken) / np.where(some, total, 1.0)[context]
        lower = 10 ** logs[n - 1][suffixes[n]] if n else np.full(size, 1.0 / (size - 1))
        with np.errstate(divide="ignore"):
            logs.append(np.log10(own + gamma[context] * lower))
            if n:
                backoffs.append(np.log10(gamma))
        if n == 0:
            logs[0][BEGIN] = _NEVER
    backoffs.append(np.zeros(len(keys[-1])))
    return [
        Table(number, log.astype(np.float32), backoff.astype(np.float32))
        for number, log, backoff in zip(keys, logs, backoffs, strict=True)
    ]

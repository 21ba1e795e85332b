"""Sentences are counted, not cut: where one ends and another begins."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from coretrain.corpus.text.classes import BLANK, JOINED, TERMINAL, UNSPACED
from coretrain.corpus.text.spans import Ints, Mask
from coretrain.corpus.text.texts import Texts

SentenceCounter = Callable[[Sequence[str]], Sequence[int]]
"""A user's own: how many sentences each line has."""
_CLOSERS = [ord(one) for one in "\"'”’»)]}」』）】"]
_WITHOUT_BLANK = [ord(one) for one in "。！？｡"]


def sentence_ends(texts: Texts) -> Ints:
    """Where sentences end among all characters [N]: at terminal signs and the quotes and brackets that close behind
    them, before a blank, a line end or the text's end; full-width signs end one before any character.

    "Mr. Smith" is cut as well: abbreviations aren't known.
    """
    terminal = texts.has(TERMINAL)
    count = len(terminal)
    tail = terminal | np.isin(texts.points, np.array(_CLOSERS, np.uint32))
    tail &= ~texts.has(BLANK)
    last = np.zeros(count, np.bool_)
    last[:-1] = tail[:-1] & (~tail[1:] | texts.begins[1:])
    last[-1:] = tail[-1:]
    at = np.flatnonzero(last)
    starts = _run_starts(tail, texts)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(terminal)])
    wide = np.concatenate(
        [np.zeros(1, np.int64), np.cumsum(np.isin(texts.points, np.array(_WITHOUT_BLANK, np.uint32)))]
    )
    stops = at + 1
    ends_there = np.ones(len(at), np.bool_)
    inner = stops < count
    blank_next = texts.has(BLANK)
    ends_there[inner] = blank_next[stops[inner]] | texts.begins[stops[inner]]
    is_end = (sums[stops] > sums[starts]) & (ends_there | (wide[stops] > wide[starts]))
    return stops[is_end]


def _run_starts(mask: Mask, texts: Texts) -> Ints:
    first = mask.copy()
    first[1:] &= ~mask[:-1] | texts.begins[1:]
    return np.flatnonzero(first)


def count_sentences(lines: Sequence[str]) -> Ints:
    """How many sentences each line has; what follows the last end is one too."""
    texts = Texts(lines)
    ends = sentence_ends(texts)
    inked = np.flatnonzero(texts.has(JOINED | UNSPACED))
    # an end counts where a letter or digit stands since the one before, and so does the rest behind the last
    marks = np.sort(np.concatenate([ends, texts.bounds[1:]]))
    owners = np.searchsorted(texts.bounds, marks, side="left") - 1
    before = np.concatenate([np.zeros(1, np.int64), marks[:-1]])
    some = np.searchsorted(inked, marks) > np.searchsorted(inked, before)
    return np.bincount(owners[some], minlength=len(lines)).astype(np.int64)

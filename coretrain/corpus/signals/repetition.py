"""Gopher's repetition rules (Rae et al., 2021, table A1): repeated lines, paragraphs and n-grams of words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Signal
from coretrain.corpus.signals.base import TextStep, ratio, without
from coretrain.corpus.text.repeats import (
    covered_characters,
    first_characters,
    greedy_characters,
    later_copies,
    repeated_grams,
    top_characters,
)
from coretrain.corpus.text.spans import Ints, Spans
from coretrain.corpus.text.texts import Texts

TOP, DUPLICATE = (2, 3, 4), (5, 6, 7, 8, 9, 10)
"""Words of the n-grams whose most frequent one counts, and of those of which every repetition counts."""


@dataclass(frozen=True)
class GopherRepetition(TextStep):
    """Signals `gopher_repetition.*`: fractions of a document, and its `characters`.

    `duplicate_lines` and `duplicate_paragraphs`: those that occurred before, among all; `..._characters`: their
    characters among the text's. Lines are split at runs of line ends, paragraphs at two and more.

    `top_2_gram` to `top_4_gram`: the most frequent n-gram's characters, blanks between its words included, times its
    count, over the text's. 0 where none occurs twice; of equally frequent ones the longest.

    `duplicate_5_gram` to `duplicate_10_gram`: characters of words that lie in an n-gram that occurred before, each
    word once, over the text's.

    Of scripts without blanks the n-grams are NaN (`unspaced` has them).

    `counting="datatrove"`: the first of equally frequent n-grams counts, and does where it occurs once; repeated ones
    are looked for from left to right, a hit passes over its n words without noting what begins there, and words are
    compared without the blanks between them.
    """

    name = "gopher_repetition"

    def signals(self, texts: Texts, languages: list[str]) -> Mapping[str, Signal]:
        """Of a block of texts."""
        found: dict[str, Signal] = {"characters": texts.lengths.astype(np.float64)}
        for key, spans in (("line", texts.line_runs), ("paragraph", texts.paragraphs)):
            later = later_copies(spans, texts.hashes(spans))
            found[f"duplicate_{key}s"] = ratio(spans.sum(later), spans.counts)
            found[f"duplicate_{key}_characters"] = ratio(spans.sum(np.where(later, spans.lengths, 0)), texts.lengths)
        foreign = self.foreign(texts)
        grams = self._as_datatrove(texts) if self.counting == "datatrove" else gram_characters(texts, texts.words)
        for key, characters in grams.items():
            found[key] = without(ratio(characters, texts.lengths), foreign)
        return found

    def _as_datatrove(self, texts: Texts) -> dict[str, Ints]:
        words = texts.words
        found = {}
        for n, groups in repeated_grams(words, texts.word_hashes, max(TOP)):
            top = top_characters(words, groups, n, first_of_equals=True)
            found[f"top_{n}_gram"] = np.where(top > 0, top, first_characters(words, n))
        greedy = greedy_characters(texts.points, words, DUPLICATE)
        return found | {f"duplicate_{n}_gram": greedy[n] for n in DUPLICATE}


def gram_characters(texts: Texts, words: Spans, scale: int = 1) -> dict[str, Ints]:
    """[D] For each of Gopher's n the characters of the top or the repeated n-grams of `scale * n` words."""
    found = {}
    for n, groups in repeated_grams(words, texts.hashes(words), scale * max(DUPLICATE)):
        if n % scale == 0 and n // scale in TOP:
            found[f"top_{n}_gram"] = top_characters(words, groups, n)
        elif n % scale == 0 and n // scale in DUPLICATE:
            found[f"duplicate_{n}_gram"] = covered_characters(words, groups, n)
    return found

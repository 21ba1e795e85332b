"""Gopher's quality rules (Rae et al., 2021, appendix A.1): counts of words, symbols, bullets, stop words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Signal
from coretrain.corpus.signals.base import TextStep, ratio, without
from coretrain.corpus.signals.stop_words import ENGLISH, STOP_WORDS
from coretrain.corpus.text.classes import DIGIT, LETTER, MARK, PLAIN_PUNCTUATION
from coretrain.corpus.text.hashes import hashes_of
from coretrain.corpus.text.spans import Ints, Mask
from coretrain.corpus.text.texts import Texts

_ELLIPSIS = 0x2026


@dataclass(frozen=True)
class Gopher(TextStep):
    """Signals `gopher.*` of each document.

    `words` that aren't punctuation, their `mean_word_length` in characters; `hash_ratio` (#) and `ellipsis_ratio`
    (... and U+2026) to all words with punctuation; `bullet_lines` and `ellipsis_lines` among lines; `alpha_words`,
    words with a letter among all; `stop_words`, how many different ones occur as they are written (so not "The").

    Of scripts without blanks what counts words is NaN (`unspaced` has rules for them). Stop words are those of the
    document's language; NaN where there is no list, or where the language isn't known and most letters aren't Latin.

    `counting="datatrove"`: punctuation is that of its own list, so that "€" alone is a word; English stop words are
    looked for in every text.
    """

    bullets: str = "•-"
    name = "gopher"

    def signals(self, texts: Texts, languages: list[str]) -> Mapping[str, Signal]:
        """Of a block of texts."""
        words = texts.words
        if self.counting == "datatrove":
            real = texts.count_within(words, PLAIN_PUNCTUATION) < words.lengths
        else:
            real = texts.count_within(words, LETTER | DIGIT | MARK) > 0
        count = words.sum(real)
        hashes = np.array([one.count("#") for one in texts.strings], np.int64)
        ellipses = np.array([one.count("...") + one.count("…") for one in texts.strings], np.int64)
        foreign = self.foreign(texts)
        found = {
            "words": count,
            "mean_word_length": ratio(words.sum(np.where(real, words.lengths, 0)), count),
            "hash_ratio": ratio(hashes, words.counts),
            "ellipsis_ratio": ratio(ellipses, words.counts),
            "alpha_words": ratio(words.sum(texts.count_within(words, LETTER) > 0), words.counts),
        }
        return {key: without(signal, foreign) for key, signal in found.items()} | {
            **self._lines(texts),
            "stop_words": self._stop_words(texts, languages),
        }

    def _lines(self, texts: Texts) -> Mapping[str, Signal]:
        lines = texts.split_lines
        inner = texts.stripped(lines)
        some = inner.lengths > 0
        points = texts.points
        begin = np.zeros(len(some), np.bool_)
        begin[some] = np.isin(points[inner.starts[some]], np.array([ord(one) for one in self.bullets], np.uint32))
        end = np.zeros(len(some), np.bool_)
        last = inner.ends[some] - 1
        dots = (points == 0x2E).astype(np.int8)
        three = np.zeros(len(points), np.bool_)
        three[2:] = (dots[2:] + dots[1:-1] + dots[:-2]) == 3
        end[some] = (points[last] == _ELLIPSIS) | (three[last] & (inner.lengths[some] >= 3))
        return {
            "bullet_lines": ratio(lines.sum(begin), lines.counts),
            "ellipsis_lines": ratio(lines.sum(end), lines.counts),
        }

    def _stop_words(self, texts: Texts, languages: list[str]) -> Signal:
        out = np.full(len(texts.strings), np.nan)
        if self.counting == "datatrove":
            return _different(texts, ENGLISH, np.ones(len(out), np.bool_))
        letters = texts.has(LETTER)
        latin = 2 * texts.count(letters & (texts.points < 0x250)) >= texts.count(letters)
        known = [code or ("en" if is_latin else "") for code, is_latin in zip(languages, latin.tolist(), strict=True)]
        for code in sorted(set(known) & set(STOP_WORDS)):
            chosen = np.array([one == code for one in known], np.bool_)
            out[chosen] = _different(texts, STOP_WORDS[code], chosen)[chosen]
        return out


def _different(texts: Texts, listed: tuple[str, ...], chosen: Mask) -> Signal:
    """[D] How many of the listed words occur in each of the chosen texts."""
    words = texts.words
    wanted = np.unique(hashes_of(listed))
    at = np.searchsorted(wanted, texts.word_hashes)
    hit = wanted[np.minimum(at, len(wanted) - 1)] == texts.word_hashes
    hit &= chosen[words.documents]
    pairs: Ints = np.unique(words.documents[hit] * len(wanted) + at[hit])
    return np.bincount(pairs // len(wanted), minlength=len(chosen)).astype(np.float64)

"""Rules for texts in scripts without blanks between words: Han, Kana, Thai, Lao, Khmer, Burmese.

They have no words that a program sees without a dictionary, so that characters are counted: a letter with the marks
over it is one. Two characters stand for a word, as long as a word of Chinese or Japanese is on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coretrain.corpus.document import Signal
from coretrain.corpus.signals.base import TextStep, ratio, without
from coretrain.corpus.signals.repetition import gram_characters
from coretrain.corpus.text.classes import BLANK, LETTER, MARK, UNSPACED
from coretrain.corpus.text.texts import Texts


@dataclass(frozen=True)
class Unspaced(TextStep):
    """Signals `unspaced.*`; NaN for every text of which less than half the letters are of such a script.

    `letters`: how many letters of such scripts there are. `letter_fraction`: letters and marks among all characters
    that aren't blank. `top_4_gram` to `top_8_gram` and `duplicate_10_gram` to `duplicate_20_gram`: as Gopher's for 2 to
    4 and 5 to 10 words, of twice as many characters.
    """

    name = "unspaced"

    def signals(self, texts: Texts, languages: list[str]) -> Mapping[str, Signal]:
        """Of a block of texts."""
        others = ~texts.unspaced
        words = texts.words.only(texts.unspaced[texts.words.documents])
        found = {
            "letters": texts.count(texts.has(UNSPACED)),
            "letter_fraction": ratio(texts.count(texts.has(LETTER | MARK)), texts.count(~texts.has(BLANK))),
        }
        for key, characters in gram_characters(texts, words, scale=2).items():
            found[key] = ratio(characters, texts.lengths)
        return {key: without(signal, others) for key, signal in found.items()}

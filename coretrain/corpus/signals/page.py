"""What is known of any page: lengths and fractions of characters, as CCNet, mC4 and RedPajama-Data v2 use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Signal
from coretrain.corpus.signals.base import TextStep, check_option, ratio, without
from coretrain.corpus.text.classes import BLANK, DIGIT, LETTER, MARK, UPPER
from coretrain.corpus.text.hashes import OF_DOCUMENT
from coretrain.corpus.text.texts import Texts


@dataclass(frozen=True)
class Page(TextStep):
    """Signals `page.*`.

    `characters`; `lines` between line ends; `long_lines`, those of at least `long` characters (mC4); `mean_line`,
    characters of a line that isn't blank; `digits`, `uppercase` (among letters) and `special_characters`, those that
    are no letter, mark, digit or blank, as fractions; `unique_words`, different words among all words (NaN for scripts
    without blanks).
    """

    long: int = 200
    name = "page"

    def __post_init__(self) -> None:
        """Raise `UserError` for options that can't be."""
        super().__post_init__()
        check_option("page.long", self.long, 1)

    def signals(self, texts: Texts, languages: list[str]) -> Mapping[str, Signal]:
        """Of a block of texts."""
        lines = texts.lines
        some = texts.stripped(lines).lengths > 0
        words = texts.words
        keys = np.unique(texts.word_hashes + words.documents.astype(np.uint64) * OF_DOCUMENT, return_index=True)[1]
        unique = np.bincount(words.documents[keys], minlength=len(words.counts))
        special = texts.count(~texts.has(LETTER | MARK | DIGIT | BLANK))
        return {
            "characters": texts.lengths.astype(np.float64),
            "lines": lines.counts.astype(np.float64),
            "long_lines": lines.sum(lines.lengths >= self.long).astype(np.float64),
            "mean_line": ratio(lines.sum(np.where(some, lines.lengths, 0)), lines.sum(some)),
            "digits": ratio(texts.count(texts.has(DIGIT)), texts.lengths),
            "uppercase": ratio(texts.count(texts.has(UPPER)), texts.count(texts.has(LETTER))),
            "special_characters": ratio(special, texts.lengths),
            "unique_words": without(ratio(unique, words.counts), self.foreign(texts)),
        }

"""FineWeb's own rules (Penedo et al., 2024): the ends and lengths of lines, and lines that repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Signal
from coretrain.corpus.signals.base import TextStep, check_option, ratio, without
from coretrain.corpus.text.classes import TERMINAL
from coretrain.corpus.text.repeats import later_copies
from coretrain.corpus.text.texts import Texts


@dataclass(frozen=True)
class FineWeb(TextStep):
    """Signals `fineweb.*`. Lines of blanks alone don't count; the others are taken with the blanks at their ends.

    `lines`: how many there are. `punctuated_lines`: those whose last character ends a sentence, in any script; quotes
    and brackets behind it don't. `short_lines`: those of at most `short` characters. `duplicate_line_characters`:
    characters of lines that occurred before, among all but the line ends. `newlines_per_word`: line ends to words,
    punctuation included.

    Of scripts without blanks `short_lines` and `newlines_per_word` are NaN.

    `counting="datatrove"`: the same, also for those scripts.
    """

    short: int = 30
    """Characters of a short line, at most."""
    name = "fineweb"

    def __post_init__(self) -> None:
        """Raise `UserError` for options that can't be."""
        super().__post_init__()
        check_option("fineweb.short", self.short, 0)

    def signals(self, texts: Texts, languages: list[str]) -> Mapping[str, Signal]:
        """Of a block of texts."""
        lines = texts.lines.only(texts.stripped(texts.lines).lengths > 0)
        ended = (texts.flags[lines.ends - 1] & TERMINAL) > 0
        later = later_copies(lines, texts.hashes(lines))
        newlines = np.diff(np.searchsorted(texts.newlines, texts.bounds))
        foreign = self.foreign(texts)
        return {
            "lines": lines.counts.astype(np.float64),
            "punctuated_lines": ratio(lines.sum(ended), lines.counts),
            "short_lines": without(ratio(lines.sum(lines.lengths <= self.short), lines.counts), foreign),
            "duplicate_line_characters": ratio(lines.sum(np.where(later, lines.lengths, 0)), texts.lengths - newlines),
            "newlines_per_word": without(ratio(newlines, texts.words.counts), foreign),
        }

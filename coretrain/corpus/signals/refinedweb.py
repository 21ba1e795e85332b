"""RefinedWeb's rules for lines (Penedo et al., 2023, appendix G.2), as DCLM's code reconstructs them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Batch
from coretrain.corpus.signals.base import check_option
from coretrain.corpus.text.classes import DIGIT, LETTER, MARK, UPPER
from coretrain.corpus.text.spans import Ints
from coretrain.corpus.text.texts import Texts, blocks

_COUNTER = re.compile(
    r"\W*\d[\d,.]*[kmb]?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|"
    r"views|followers)\W*"
)
_PHRASES = (
    re.compile(r"\s?items in cart", re.IGNORECASE),
    re.compile(r"\s?read more\.\.\.$", re.IGNORECASE),
    re.compile(r"^sign-in\s?", re.IGNORECASE),
)
_CAUSES = ("uppercase", "digits", "counters", "one_word", "phrases")
_MANY_NEWLINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class RefinedWeb:
    """Edits the text: more than two line ends in a row become two; then a line is dropped where more than
    `max_uppercase` of its characters are upper case, all are digits, it is a counter ("3 likes"), or it has one word;
    in a line of at most `max_phrase_words` words "items in cart" anywhere, "Read more..." at its end and "Sign-in" at
    its start are cut out, and the line where nothing is left.

    Signals `refinedweb.*`: how many lines were dropped or cut as `uppercase`, `digits`, `counters`, `one_word` and
    `phrases`, the first that holds; `removed_words`, the fraction of the text's words (punctuation isn't counted)
    that went; NaN where it had none.

    Texts in scripts without blanks are left alone, and their signals are NaN: a line of theirs has no words to count.
    DCLM also cuts web addresses out of the text before; this does not.
    """

    max_uppercase: float = 0.5
    max_phrase_words: int = 10
    name = "refinedweb"

    def __post_init__(self) -> None:
        """Raise `UserError` for options that can't be."""
        check_option("refinedweb.max_uppercase", self.max_uppercase, 0, 1)
        check_option("refinedweb.max_phrase_words", self.max_phrase_words, 0)

    def run(self, batch: Batch) -> Batch:
        """The batch with edited texts and these signals."""
        edited: list[str] = []
        table: list[list[float]] = []
        removed: list[float] = []
        for _, texts in blocks([_MANY_NEWLINES.sub("\n\n", text) for text in batch.texts]):
            lines = texts.lines
            capitals = texts.count_within(lines, UPPER) > self.max_uppercase * lines.lengths
            before = _words(texts)
            news = []
            for index, text in enumerate(texts.strings):
                if texts.unspaced[index]:
                    news.append(text)
                    table.append([np.nan] * len(_CAUSES))
                    continue
                upper = capitals[lines.first[index] : lines.first[index + 1]].tolist()
                new, counts = self.edit(text, upper)
                news.append(new)
                table.append([float(counts[cause]) for cause in _CAUSES])
            after = _words(Texts(news))
            known = (before > 0) & ~texts.unspaced
            gone = np.full(len(news), np.nan)
            gone[known] = (before - after)[known] / before[known]
            removed += gone.tolist()
            edited += news
        columns = np.array(table, np.float64).reshape(-1, len(_CAUSES)).T.copy()
        signals = {f"refinedweb.{cause}": column for cause, column in zip(_CAUSES, columns, strict=True)}
        same = [old if old == new else new for old, new in zip(batch.texts, edited, strict=True)]
        return batch.with_texts(same).with_signals(
            signals | {"refinedweb.removed_words": np.array(removed, np.float64)}
        )

    def edit(self, text: str, upper: list[bool]) -> tuple[str, Counter[str]]:
        """A text with its lines dropped or cut, and how many for each cause. `upper` says which lines shout."""
        counts: Counter[str] = Counter()
        kept = []
        for line, shouts in zip(text.split("\n"), upper, strict=True):
            words = len(line.split())
            if shouts:
                counts["uppercase"] += 1
            elif line.isdigit():
                counts["digits"] += 1
            elif _COUNTER.fullmatch(line.lower()):
                counts["counters"] += 1
            elif line and words < 2:
                counts["one_word"] += 1
            else:
                cut = self._without_phrases(line) if words <= self.max_phrase_words else line
                counts["phrases"] += cut != line
                if cut.strip() or not line:
                    kept.append(cut)
        return "\n".join(kept).strip(), counts

    def _without_phrases(self, line: str) -> str:
        for phrase in _PHRASES:
            line = phrase.sub("", line)
        return line


def _words(texts: Texts) -> Ints:
    """[D] Words that have a letter or digit."""
    return texts.words.sum(texts.count_within(texts.words, LETTER | DIGIT | MARK) > 0)

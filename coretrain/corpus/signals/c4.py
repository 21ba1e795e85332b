"""C4's rules (Raffel et al., 2020): lines that are no sentences are dropped, pages with code or filler marked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coretrain.corpus.document import Batch
from coretrain.corpus.signals.base import Counting, check_counting, check_option
from coretrain.corpus.text.sentences import SentenceCounter, count_sentences
from coretrain.corpus.text.texts import blocks

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_ENDS, _ELLIPSIS = (".", "?", "!", '"', "'"), "..."
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_COUNTS = ("lines", "lines_kept", "long_word", "no_end", "few_words", "javascript", "policy", "lorem_ipsum", "curly")


@dataclass(frozen=True)
class C4:
    """Edits the text: each line loses the blanks at its ends and its citations ([1], [edit], [citation needed]), and is
    dropped where it has a word of more than `max_word_characters`, doesn't end in . ? ! " ' or ends in three points,
    has fewer than `min_words_per_line` words, or speaks of javascript or of cookies and terms of use.

    Signals `c4.*`: `lines` before and `lines_kept`; how many were dropped as `long_word`, `no_end`, `few_words`,
    `javascript` and `policy`, the first that holds; `lorem_ipsum` and `curly`, lines with that phrase or a `{` that
    come to be looked at for it, which drop a page by limits; `sentences` of the kept lines.

    Two sets of numbers go round as C4: the paper, and datatrove with it, has 3 words a line and 5 sentences, the code
    of TensorFlow Datasets, and DCLM with it, 5 and 3. Texts in scripts without blanks are left alone, their signals
    are NaN: the ends and words of these rules are English.

    `counting="datatrove"`: words of a line are counted before citations go, not after; every script is edited.
    """

    min_words_per_line: int = 3
    max_word_characters: int = 1000
    terminal_punctuation: bool = True
    """FineWeb leaves this rule out."""
    javascript: bool = True
    policy: bool = True
    citations: bool = True
    counting: Counting = "default"
    sentences: SentenceCounter | None = None
    """Sentences of lines by another tool; `coretrain.corpus.text.sentences` where there is none."""
    name = "c4"

    def __post_init__(self) -> None:
        """Raise `UserError` for options that can't be."""
        check_counting(self.name, self.counting)
        check_option("c4.min_words_per_line", self.min_words_per_line, 0)
        check_option("c4.max_word_characters", self.max_word_characters, 1)

    def run(self, batch: Batch) -> Batch:
        """The batch with edited texts and these signals."""
        edited: list[str] = []
        table = np.zeros((len(batch.documents), len(_COUNTS)))
        sentences = np.zeros(len(batch.documents))
        for place, texts in blocks(batch.texts):
            foreign = np.zeros(len(texts.strings), np.bool_) if self.counting == "datatrove" else texts.unspaced
            lines: list[str] = []
            owners: list[int] = []
            for index, text in enumerate(texts.strings, start=place.start):
                if foreign[index - place.start]:
                    edited.append(text)
                    table[index] = sentences[index] = np.nan
                    continue
                kept, counts = self.edit(text)
                table[index] = [counts[key] for key in _COUNTS]
                lines += kept
                owners += [index] * len(kept)
                edited.append("\n".join(kept).strip())
            found = (self.sentences or count_sentences)(lines)
            np.add.at(sentences, np.array(owners, np.int64), np.asarray(found, np.float64))
        signals = {f"c4.{key}": column for key, column in zip(_COUNTS, table.T.copy(), strict=True)}
        return batch.with_texts(_same(batch.texts, edited)).with_signals(signals | {"c4.sentences": sentences})

    def edit(self, text: str) -> tuple[list[str], Counter[str]]:
        """The lines of a text that are kept, and the counts of its signals."""
        counts: Counter[str] = Counter()
        kept = []
        for whole in text.splitlines():
            counts["lines"] += 1
            line = whole.strip()
            if len(line) > self.max_word_characters and max(map(len, line.split())) > self.max_word_characters:
                counts["long_word"] += 1
                continue
            words = line.split()
            if self.citations and "[" in line:
                line = _CITATION.sub("", line)
                words = words if self.counting == "datatrove" else line.split()
            if self.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith(_ELLIPSIS)):
                counts["no_end"] += 1
                continue
            if len(words) < self.min_words_per_line:
                counts["few_words"] += 1
                continue
            lower = line.lower()
            counts["lorem_ipsum"] += "lorem ipsum" in lower
            if self.javascript and "javascript" in lower:
                counts["javascript"] += 1
                continue
            counts["curly"] += "{" in line
            if self.policy and any(phrase in lower for phrase in _POLICY):
                counts["policy"] += 1
            else:
                kept.append(line)
        counts["lines_kept"] = len(kept)
        return kept, counts


def _same(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """The texts after, as the objects before where they are equal."""
    return [old if old == new else new for old, new in zip(before, after, strict=True)]

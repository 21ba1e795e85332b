"""Words that speak of sex or violence, counted against a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.document import Batch, Signal
from coretrain.corpus.signals.base import ratio
from coretrain.corpus.signals.lists import read_list
from coretrain.corpus.text.classes import UNSPACED, flags_of_points
from coretrain.corpus.text.hashes import STEP, Hashes
from coretrain.corpus.text.spans import Ints
from coretrain.corpus.text.texts import Texts, blocks

EXAMPLES = {
    "adult": ("camgirl", "hardcore sex", "porn", "pornographic", "striptease", "xxx videos"),
    "violence": ("beheading", "execution video", "massacre", "mutilated", "slaughtered", "torture"),
}
"""Mild examples, English: they show what a list does. C4's list has some 400 words: bring your own file."""


@dataclass(frozen=True)
class WordList:
    """Signals `NAME.words`, how often words or phrases of a list occur in a document, and `NAME.fraction`, their words
    among all its words; NaN of a text without words.

    Upper and lower case are one. Entries of scripts with blanks match whole words in a row, with the punctuation as it
    is in the entry, from left to right, the longest entry first and none within another. Entries that have a letter of
    a script without blanks match anywhere.

    Raises `UserError` for a file that can't be read.
    """

    name: str = "adult"
    """`adult` and `violence` have examples; a list of another name needs a file."""
    file: str = ""
    """An entry a line, in UTF-8; "" is the example."""

    @cached_property
    def _entries(self) -> _Entries:
        if not self.file and self.name not in EXAMPLES:
            raise UserError(
                "corpus/word-list-without-file",
                f"the word list {shown(self.name)} has no file: name one in its field `file`, or take "
                f"{' or '.join(EXAMPLES)}",
            )
        return _entries(self.file, EXAMPLES.get(self.name, ()))

    def run(self, batch: Batch) -> Batch:
        """The batch with these signals."""
        words: list[Signal] = [np.zeros(0)]
        fractions: list[Signal] = [np.zeros(0)]
        for _, texts in blocks([one.lower() for one in batch.texts]):
            times, covered = self._entries.count(texts)
            words.append(times.astype(np.float64))
            fractions.append(ratio(covered, texts.words.counts))
        return batch.with_signals(
            {f"{self.name}.words": np.concatenate(words), f"{self.name}.fraction": np.concatenate(fractions)}
        )


class _Entries:
    """A list ready to be looked for."""

    def __init__(self, entries: Sequence[str]) -> None:
        entries = sorted({one.lower() for one in entries})
        flags = flags_of_points()
        anywhere = [any(flags[ord(sign)] & UNSPACED for sign in one) for one in entries]
        self.anywhere = [one for one, is_one in zip(entries, anywhere, strict=True) if is_one]
        spaced = Texts([one for one, is_one in zip(entries, anywhere, strict=True) if not is_one])
        lengths = spaced.words.counts
        self.by_length: dict[int, Hashes] = {}
        for n in np.unique(lengths[lengths > 0]).tolist():
            starts = spaced.words.first[:-1][lengths == n]
            self.by_length[n] = np.unique(_grams(spaced.word_hashes, starts, n))

    def count(self, texts: Texts) -> tuple[Ints, Ints]:
        """[D] How often entries occur, and how many words they take."""
        words, hashes = texts.words, texts.word_hashes
        rest = words.first[1:][words.documents] - np.arange(len(hashes))
        longest = np.zeros(len(hashes), np.int64)
        for n, known in self.by_length.items():  # from the shortest on
            places = np.flatnonzero(rest >= n)
            grams = _grams(hashes, places, n)
            at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            longest[places[known[at] == grams]] = n
        free = 0
        for place in np.flatnonzero(longest).tolist():  # few
            if place < free:
                longest[place] = 0
            else:
                free = place + int(longest[place])
        times, covered = words.sum(longest > 0), words.sum(longest)
        for entry in self.anywhere:
            found = np.array([text.count(entry) for text in texts.strings], np.int64)
            times += found
            covered += found * len(entry)
        return times, np.minimum(covered, words.counts)


def _grams(hashes: Hashes, starts: Ints, n: int) -> Hashes:
    out = hashes[starts]
    for offset in range(1, n):
        out = out * STEP + hashes[starts + offset]
    return out


@cache
def _entries(file: str, otherwise: tuple[str, ...]) -> _Entries:
    return _Entries(read_list(Path(file), "a list of words") if file else otherwise)

"""Many texts laid end to end as one array of code points, and what is cut out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.text.classes import BLANK, LETTER, LINE_END, UNSPACED, flags_of_points
from coretrain.corpus.text.hashes import Hashes, Prefixes
from coretrain.corpus.text.spans import Ints, Mask, Spans, between, runs, sums_within
from coretrain.corpus.text.words import split_words

BLOCK = 2**20
"""Characters of texts that are worked on at once (some 60 bytes of memory each); a longer text is alone."""
Splitter = Callable[[Sequence[str]], Sequence[Sequence[tuple[int, int]]]]
"""A user's own splitter: for each text its words as (start, end), in order, without overlaps."""


class Texts:
    """Texts [D], their code points [N] end to end, and views of them, each computed when it is first asked for."""

    def __init__(self, strings: Sequence[str], splitter: Splitter | None = None) -> None:
        self.strings = list(strings)
        self.points: NDArray[np.uint32] = np.frombuffer(
            "".join(self.strings).encode("utf-32-le", "surrogatepass"), np.uint32
        )
        self.lengths: Ints = np.fromiter(map(len, self.strings), np.int64, len(self.strings))
        self.bounds: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])
        self._splitter = splitter

    @cached_property
    def flags(self) -> NDArray[np.uint16]:
        """[N] The bits of each character (`classes`)."""
        return flags_of_points()[self.points]

    @cached_property
    def begins(self) -> Mask:
        """[N] Whether a text begins here."""
        begins = np.zeros(len(self.points) + 1, np.bool_)
        begins[self.bounds[:-1]] = True
        return begins[:-1]

    def has(self, bits: int) -> Mask:
        """[N] Which characters have one of these bits."""
        return (self.flags & np.uint16(bits)) > 0

    def count(self, mask: Mask) -> Ints:
        """[D] How many characters of each text are true in `mask` [N]."""
        return np.diff(np.searchsorted(np.flatnonzero(mask), self.bounds))

    @cached_property
    def words(self) -> Spans:
        """The words and marks of punctuation."""
        if self._splitter is None:
            return split_words(self.points, self.flags, self.begins, self.bounds)
        found = self._splitter(self.strings)
        counts = np.fromiter(map(len, found), np.int64, len(found))
        pairs = np.array([pair for one in found for pair in one], np.int64).reshape(-1, 2)
        pairs += np.repeat(self.bounds[:-1], counts)[:, None]
        first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return Spans(pairs[:, 0].copy(), pairs[:, 1].copy(), first)

    @cached_property
    def tokens_between_blanks(self) -> Spans:
        """What `str.split` gives."""
        starts, ends = runs(~self.has(BLANK), self.begins)
        return Spans(starts, ends, np.searchsorted(starts, self.bounds))

    @cached_property
    def newlines(self) -> Ints:
        """Where the `\\n` are."""
        return np.flatnonzero(self.points == 10)

    @cached_property
    def lines(self) -> Spans:
        """What `str.split("\\n")` gives."""
        return between(self.bounds[:-1], self.bounds[1:], self.newlines, self.newlines + 1)

    @cached_property
    def split_lines(self) -> Spans:
        """What `str.splitlines` gives: cut at every kind of line end, nothing behind the last."""
        at = np.flatnonzero(self.has(LINE_END))
        ends = at + 1
        points = self.points
        following = at[(at + 1 < len(points)) & (points[at] == 13)]
        following = following[(points[following + 1] == 10) & ~self.begins[following + 1]]
        if len(following):  # \r\n is one end
            ends = ends + np.isin(at, following)
            kept = ~np.isin(at, following + 1)
            at, ends = at[kept], ends[kept]
        found = between(self.bounds[:-1], self.bounds[1:], at, ends)
        nothing = np.zeros(len(found.starts), np.bool_)
        last = found.first[1:] - 1
        nothing[last] = found.lengths[last] == 0
        return found.only(~nothing)

    @cached_property
    def line_runs(self) -> Spans:
        """What splitting at every run of `\\n` gives."""
        starts, ends = runs(self.points == 10, self.begins)
        return between(self.bounds[:-1], self.bounds[1:], starts, ends)

    @cached_property
    def paragraphs(self) -> Spans:
        """What is left of a text without blanks at its ends, split at runs of two `\\n` and more."""
        whole = Spans(self.bounds[:-1], self.bounds[1:], np.arange(len(self.bounds)))
        inner = self.stripped(whole)
        starts, ends = runs(self.points == 10, self.begins)
        owner = np.searchsorted(self.bounds, starts, side="right") - 1
        kept = (ends - starts >= 2) & (starts >= inner.starts[owner]) & (ends <= inner.ends[owner])
        return between(inner.starts, inner.ends, starts[kept], ends[kept])

    @cached_property
    def _inked(self) -> Ints:
        return np.flatnonzero(~self.has(BLANK))

    def stripped(self, spans: Spans) -> Spans:
        """The spans without blanks at their ends, as `str.strip` does it; one of blanks alone becomes empty."""
        low, high = np.searchsorted(self._inked, spans.starts), np.searchsorted(self._inked, spans.ends)
        some = low < high
        starts, ends = spans.starts.copy(), spans.starts.copy()
        starts[some] = self._inked[low[some]]
        ends[some] = self._inked[high[some] - 1] + 1
        return Spans(starts, ends, spans.first)

    @cached_property
    def prefixes(self) -> Prefixes:
        """For hashes of spans."""
        return Prefixes(self.points)

    @cached_property
    def word_hashes(self) -> Hashes:
        """[n] Of the words."""
        return self.hashes(self.words)

    def hashes(self, spans: Spans) -> Hashes:
        """[n] The spans' hashes."""
        return self.prefixes.hashes(spans.starts, spans.ends)

    def count_within(self, spans: Spans, bits: int) -> Ints:
        """[n] How many characters of each span have one of these bits."""
        return sums_within(spans, self.has(bits))

    @cached_property
    def unspaced(self) -> Mask:
        """[D] Texts of which most letters are of a script without blanks between words."""
        return 2 * self.count(self.has(UNSPACED)) > self.count(self.has(LETTER))


_kept: list[Texts] = []


def blocks(strings: Sequence[str], splitter: Splitter | None = None, most: int = 0) -> Iterator[tuple[slice, Texts]]:
    """The texts in blocks of at most `most` characters (0: `BLOCK`), each with its place among `strings`.

    A batch of one block is kept until the next comes: the rules that look at the same batch share its words.
    """
    most = most or BLOCK
    start, characters = 0, 0
    for index, one in enumerate(strings):
        if index > start and characters + len(one) > most:
            yield slice(start, index), _texts(strings[start:index], splitter)
            start, characters = index, 0
        characters += len(one)
    if start < len(strings):
        yield slice(start, len(strings)), _texts(strings[start:], splitter)


def _texts(strings: Sequence[str], splitter: Splitter | None) -> Texts:
    for texts in _kept:
        known = texts.strings
        if (
            texts._splitter is splitter
            and len(known) == len(strings)
            and all(map(str.__eq__, known, strings))  # the same objects compare at once
        ):
            return texts
    _kept[:] = [Texts(strings, splitter)]
    return _kept[0]

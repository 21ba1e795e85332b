"""Planted bugs in the text rules: each changes one line, and each must be noticed by what is known of some texts."""

from __future__ import annotations

import pytest

from tests.support.known_signals import KEPT, ROOMS, differences
from tests.support.planted import planted

BUGS = {
    "an n-gram one word too short": (
        "text.repeats",
        "hashes[places + (n - 1)]",
        "hashes[places + (n - 2)]",
        "repetition default",
    ),
    "n-grams across documents": ("text.hashes", "np.uint64(0xA0761D6478BD642F)", "np.uint64(0)", "repetition default"),
    "n-grams past the end": ("text.repeats", "(rest[places] >= n)", "(rest[places] >= n - 1)", "repetition default"),
    "the first copy counts": ("text.repeats", "mask[self.leaders] = False", "pass", "repetition default"),
    "one word too many covered": (
        "text.repeats",
        "np.add.at(changes, at + n, -1)",
        "np.add.at(changes, at + n + 1, -1)",
        "repetition default",
    ),
    "no blanks in the top n-gram": (
        "text.repeats",
        "sums[leaders + n] - sums[leaders] + (n - 1)",
        "sums[leaders + n] - sums[leaders]",
        "repetition default",
    ),
    "the shortest of equals": (
        "text.repeats",
        "-leaders if first_of_equals else characters",
        "-leaders if first_of_equals else -characters",
        "repetition default",
    ),
    "the last of equals": (
        "text.repeats",
        "-leaders if first_of_equals",
        "leaders if first_of_equals",
        "repetition datatrove",
    ),
    "a hit passes over too little": ("text.repeats", "free = place + n", "free = place + 1", "repetition datatrove"),
    "passed-over n-grams are noted": (
        "text.repeats",
        "if place < free:\n                continue",
        "if place < free:\n                seen.add(number)\n                continue",
        "repetition datatrove",
    ),
    "a fraction of words": (
        "signals.repetition",
        "without(ratio(characters, texts.lengths), foreign)",
        "without(ratio(characters, texts.words.counts), foreign)",
        "repetition default",
    ),
    "copies counted, not their characters": (
        "signals.repetition",
        "np.where(later, spans.lengths, 0)",
        "later",
        "repetition default",
    ),
    "paragraphs at single line ends": (
        "text.texts",
        "(ends - starts >= 2) &",
        "(ends - starts >= 1) &",
        "repetition default",
    ),
    "paragraphs of the text with its blanks": (
        "text.texts",
        "between(inner.starts, inner.ends,",
        "between(self.bounds[:-1], self.bounds[1:],",
        "repetition default",
    ),
    "hyphens join": ("text.words", '(",", DIGIT)', '("-", LETTER)', "words"),
    "a character of Han is part of a word": ("text.words", "kind[(flags & UNSPACED) > 0] = _SINGLE", "pass", "words"),
    "different signs in a row are one word": (
        "text.words",
        "same = (points[1:] == points[:-1]) &",
        "same = (kind[:-1] == _OTHER) &",
        "words",
    ),
    "a point ends a sentence anywhere": (
        "text.sentences",
        "blank_next[stops[inner]] | texts.begins[stops[inner]]",
        "True",
        "sentences",
    ),
    "a sentence of signs alone": ("text.sentences", "JOINED | UNSPACED", "0xFFFF", "sentences"),
    "mean length over all words": (
        "signals.gopher",
        "words.sum(np.where(real, words.lengths, 0)), count)",
        "words.sum(np.where(real, words.lengths, 0)), words.counts)",
        "gopher",
    ),
    "punctuation counts as words": ("signals.gopher", "count = words.sum(real)", "count = words.counts", "gopher"),
    "each stop word as often as it occurs": (
        "signals.gopher",
        "pairs: Ints = np.unique(",
        "pairs: Ints = np.array(",
        "gopher",
    ),
    "bullets before blanks only": (
        "signals.gopher",
        "points[inner.starts[some]]",
        "points[lines.starts[some]]",
        "gopher",
    ),
    "two points are an ellipsis": (
        "signals.gopher",
        "dots[1:-1] + dots[:-2]) == 3",
        "dots[1:-1] + dots[:-2]) >= 2",
        "gopher",
    ),
    "blank lines count": (
        "signals.fineweb",
        "texts.lines.only(texts.stripped(texts.lines).lengths > 0)",
        "texts.lines.only(texts.lines.lengths > 0)",
        "fineweb",
    ),
    "short is shorter": ("signals.fineweb", "lines.lengths <= self.short", "lines.lengths < self.short", "short lines"),
    "line ends among the characters": ("signals.fineweb", "texts.lengths - newlines", "texts.lengths", "fineweb"),
    "long is longer": ("signals.page", "lines.lengths >= self.long", "lines.lengths > self.long", "long lines"),
    "English rules for Chinese": (
        "signals.base",
        "return texts.unspaced",
        "return ~np.ones(len(texts.strings), np.bool_)",
        "foreign",
    ),
    "n words are n characters": ("signals.unspaced", "scale=2", "scale=1", "unspaced"),
    "three words are too few": ("signals.c4", "len(words) < self.min", "len(words) <= self.min", "c4 text"),
    "citations stay": ("signals.c4", '_CITATION.sub("", line)', "line", "c4 text"),
    "an ellipsis is an end": (
        "signals.c4",
        "(not line.endswith(_ENDS) or line.endswith(_ELLIPSIS))",
        "not line.endswith(_ENDS)",
        "c4 text",
    ),
    "javascript in lower case": ("signals.c4", '"javascript" in lower', '"javascript" in line', "c4 text"),
    "half capitals shout": (
        "signals.refinedweb",
        "texts.count_within(lines, UPPER) >",
        "texts.count_within(lines, UPPER) >=",
        "refinedweb text",
    ),
    "removed words against what is left": (
        "signals.refinedweb",
        "(before - after)[known] / before[known]",
        "(before - after)[known] / after[known]",
        "refinedweb counts",
    ),
    "replacements in a circle": (
        "signals.pii",
        'return int.from_bytes(digest, "little") % below',
        "_number.n = getattr(_number, 'n', 0) + 1; return _number.n % below",
        "pii text",
    ),
    "private addresses replaced": (
        "signals.pii",
        "if not address.is_global or address.is_multicast:",
        "if address.is_multicast:",
        "pii counts",
    ),
    "versions replaced": (
        "signals.pii",
        "if _VERSION_BEFORE.search(",
        "if False and _VERSION_BEFORE.search(",
        "pii counts",
    ),
    "languages of 80 characters": ("signals.language", "characters: int = 2000", "characters: int = 80", "language"),
    "soft words as often as they occur": (
        "signals.url",
        "[len(one & soft) for one in words]",
        "[sum(w in soft for w in _NOT_ALPHANUMERIC.split(u)) for u in urls]",
        "url",
    ),
    "words anywhere in an address": (
        "signals.url",
        "[len(one & soft) for one in words]",
        "[sum(w in j for w in soft) for j in joined]",
        "url",
    ),
    "phrases unknown": (
        "signals.word_lists",
        "longest[places[known[at] == grams]] = n",
        "longest[places[known[at] == grams]] = 1",
        "word list",
    ),
    "lower orders count occurrences": (
        "perplexity.train",
        "np.where(begins == BEGIN, counts[n], before)",
        "counts[n]",
        "perplexity",
    ),
    "beginnings count what stands before": (
        "perplexity.train",
        "np.where(begins == BEGIN, counts[n], before)",
        "before",
        "perplexity",
    ),
    "a discount too early": ("perplexity.train", "np.minimum(counts, 3)]", "np.minimum(counts, 2)]", "perplexity"),
    "no backoff": ("perplexity.model", "total[known] += self", "total[known] += 0 * self", "perplexity"),
    "ends of lines aren't counted": (
        "perplexity.model",
        "lines.ids != BEGIN, minlength",
        "lines.ids > 2, minlength",
        "perplexity",
    ),
    "unknown words are ends": ("perplexity.lines", "ids[at], UNKNOWN)", "ids[at], END)", "perplexity"),
    "equality drops": (
        "filters.limits",
        '(limit, None) if self.side == "least"',
        '(limit + 1e-9, None) if self.side == "least"',
        "rules",
    ),
    "the last rule is named": ("rules", "(broken < 0) & ~rule", "~rule", "rules"),
}


def test_without_a_bug_there_is_no_difference():
    assert differences() == []


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug):
    module, old, new, noticed = BUGS[bug]
    with planted(f"coretrain.corpus.{module}", old, new, ROOMS, KEPT):
        try:
            found = differences(noticed)
        except (TypeError, ValueError, IndexError, KeyError):
            found = [noticed]
    assert noticed in found, found

"""What occurs more than once in a document: lines, paragraphs, n-grams of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.text.hashes import OF_DOCUMENT, STEP, Hashes, Prefixes
from coretrain.corpus.text.spans import Ints, Mask, Spans


@dataclass(frozen=True)
class Groups:
    """Items that are equal and of one document, those that occur at least twice."""

    members: Ints
    """Indices of items, group after group, in their order within each."""
    first: Ints
    """[G] Where each group begins among `members`."""
    sizes: Ints
    """[G] Times that it occurs."""

    @property
    def leaders(self) -> Ints:
        """[G] Each group's first item."""
        return self.members[self.first]

    def later(self, count: int) -> Mask:
        """[count] Which items occurred before."""
        mask = np.zeros(count, np.bool_)
        mask[self.members] = True
        mask[self.leaders] = False
        return mask


def groups_of(keys: Hashes) -> Groups:
    """The groups of equal keys. A key must hold its document (`keyed`)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    begins = np.ones(len(keys), np.bool_)
    begins[1:] = ~equal
    repeated = ~begins
    repeated[:-1] |= equal
    members = order[repeated]
    first = np.flatnonzero(begins[repeated])
    return Groups(members, first, np.diff(first, append=len(members)))


def keyed(hashes: Hashes, documents: Ints) -> Hashes:
    """Hashes that differ from document to document."""
    return hashes + documents.astype(np.uint64) * OF_DOCUMENT


def later_copies(spans: Spans, hashes: Hashes) -> Mask:
    """[n] Which spans occurred before in their document."""
    return groups_of(keyed(hashes, spans.documents)).later(len(hashes))


def repeated_grams(words: Spans, hashes: Hashes, longest: int) -> Iterator[tuple[int, Groups]]:
    """For n = 2, 3, ..., `longest` the n-grams that occur more than once in a document; an item is its first word.

    What repeats with n words repeats with n - 1 at its place and the next, so that each n looks at few places.
    """
    count = len(hashes)
    rest = words.first[1:][words.documents] - np.arange(count)  # words from here to the document's end
    grams = keyed(hashes, words.documents)
    places = np.arange(count)
    candidate = np.ones(count + 1, np.bool_)
    for n in range(2, longest + 1):
        kept = candidate[places] & candidate[places + 1] & (rest[places] >= n)
        places = places[kept]
        grams = grams[kept] * STEP + hashes[places + (n - 1)]
        groups = groups_of(grams)
        members = np.zeros(len(places), np.bool_)
        members[groups.members] = True
        candidate = np.zeros(count + 1, np.bool_)
        candidate[places[members]] = True
        yield n, Groups(places[groups.members], groups.first, groups.sizes)


def covered_characters(words: Spans, groups: Groups, n: int) -> Ints:
    """[D] Characters of words within an n-gram that occurred before in its document, each word once."""
    later = groups.later(len(words.starts))
    changes = np.zeros(len(words.starts) + n + 1, np.int64)
    at = np.flatnonzero(later)
    np.add.at(changes, at, 1)
    np.add.at(changes, at + n, -1)
    covered = np.cumsum(changes)[: len(words.starts)] > 0
    return words.sum(np.where(covered, words.lengths, 0))


def top_characters(words: Spans, groups: Groups, n: int, first_of_equals: bool = False) -> Ints:
    """[D] Characters of the n-gram that occurs most often, times its count; 0 where none occurs twice.

    Its characters are the words' and a blank between each two. Of those that occur equally often the one of most
    characters counts, or the `first_of_equals` in the document.
    """
    out = np.zeros(len(words.counts), np.int64)
    if not len(groups.sizes):
        return out
    leaders = groups.leaders
    sums = np.zeros(len(words.lengths) + 1, np.int64)
    np.cumsum(words.lengths, out=sums[1:])
    characters = sums[leaders + n] - sums[leaders] + (n - 1)
    documents = words.documents[leaders]
    last = -leaders if first_of_equals else characters
    order = np.lexsort((last, groups.sizes, documents))
    is_top = np.append(documents[order][1:] != documents[order][:-1], True)
    top = order[is_top]
    out[documents[top]] = groups.sizes[top] * characters[top]
    return out


def first_characters(words: Spans, n: int) -> Ints:
    """[D] Characters of each document's first n-gram, blanks between words included; 0 where it has fewer words."""
    sums = np.zeros(len(words.lengths) + 1, np.int64)
    np.cumsum(words.lengths, out=sums[1:])
    enough = words.counts >= n
    out = np.zeros(len(words.counts), np.int64)
    begin = words.first[:-1][enough]
    out[enough] = sums[begin + n] - sums[begin] + (n - 1)
    return out


def greedy_characters(points: NDArray[np.uint32], words: Spans, sizes: Sequence[int]) -> dict[int, Ints]:
    """For each n [D] the characters of repeated n-grams as datatrove counts them.

    From left to right an n-gram that was seen before counts whole, and the n words are passed over without being noted
    as seen. Its words stand together without a blank, so that "ab c" equals "a bc".
    """
    lengths = words.lengths
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    inside = np.repeat(words.starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    prefixes = Prefixes(points[inside])
    documents = words.documents
    found = {}
    for n in sizes:
        places = np.flatnonzero(words.first[1:][documents] - np.arange(len(lengths)) >= n)
        keys = keyed(prefixes.hashes(offsets[places], offsets[places + n]), documents[places])
        groups = groups_of(keys)
        out = np.zeros(len(words.counts), np.int64)
        group = np.empty(len(groups.members), np.int64)
        group[:] = np.repeat(np.arange(len(groups.sizes)), groups.sizes)
        members = places[groups.members]
        order = np.argsort(members, kind="stable")
        seen: set[int] = set()
        free = 0
        for place, number in zip(members[order].tolist(), group[order].tolist(), strict=True):
            if place < free:
                continue
            if number in seen:
                out[documents[place]] += offsets[place + n] - offsets[place]
                free = place + n
            else:
                seen.add(number)
        found[n] = out
    return found

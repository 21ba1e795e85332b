"""Pairs of documents: those that share a key, packed in one number each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.dedup.words import Hashes, Places

LARGEST_GROUP, LEADERS = 64, 16
"""Within a group of more documents than this, each is paired with so many of them only."""
_HALF = np.uint64(32)

Order = Callable[[Places], Places]
"""Of documents, given by their numbers: their positions in an order that depends on what they are, not on numbers."""


def packed(left: Places, right: Places) -> Hashes:
    """Pairs of numbers below 2^32 as sorted numbers of 64 bits, each pair once and its smaller document first."""
    first = np.minimum(left, right).astype(np.uint64)
    second = np.maximum(left, right).astype(np.uint64)
    return np.unique((first << _HALF) | second)


def unpacked(pairs: Hashes) -> tuple[Places, Places]:
    """Both documents of each pair."""
    return (pairs >> _HALF).astype(np.int64), (pairs & np.uint64(2**32 - 1)).astype(np.int64)


def merged(lists: Iterable[Hashes]) -> Hashes:
    """All pairs of several lists, each once."""
    every = [np.asarray(one) for one in lists]
    return np.unique(np.concatenate(every)) if every else np.zeros(0, np.uint64)


def same_key(keys: Hashes, numbers: Places, order: Order) -> tuple[Hashes, int]:
    """The pairs of documents that have the same key; and how many of them are in groups too large for all pairs.

    In such a group the first few by `order` lead: each of the others is paired with those alone. A group of n unlike
    documents would have n^2 / 2 pairs.
    """
    rank = np.argsort(keys, kind="stable")
    keys, numbers = keys[rank], numbers[rank]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.append(begins, len(keys)))
    found: list[NDArray[np.uint64]] = []
    small = (sizes > 1) & (sizes <= LARGEST_GROUP)
    begins_left, sizes_left = begins[small], sizes[small]
    for apart in range(1, int(sizes_left.max(initial=1))):  # all documents that are so far apart in their groups
        larger = sizes_left > apart
        begins_left, sizes_left = begins_left[larger], sizes_left[larger]
        left = _spread(begins_left, sizes_left - apart)
        found.append(packed(numbers[left], numbers[left + apart]))
    led = 0
    for begin, size in zip(begins[sizes > LARGEST_GROUP].tolist(), sizes[sizes > LARGEST_GROUP].tolist(), strict=True):
        group = numbers[begin : begin + size]
        group = group[np.argsort(order(group), kind="stable")]
        led += size
        for leader in range(LEADERS):
            found.append(packed(np.full(size - leader - 1, group[leader]), group[leader + 1 :]))
    return merged(found), led


def _spread(begins: Places, counts: Places) -> Places:
    """begin, begin + 1, ... of each, `counts` long, one after another."""
    shift = np.repeat(begins - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) if len(counts) else begins
    return np.arange(int(counts.sum()), dtype=np.int64) + shift

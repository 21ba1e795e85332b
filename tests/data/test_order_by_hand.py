"""The order once more in plain Python integers, part by part and epoch by epoch; small orders as literals."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest

from coretrain.data.order import parts_at, permute, rows_at, rows_of_update, whole_weights

WORD = 2**64 - 1


def mixed(x: int) -> int:
    """SplitMix64's finalizer, as Steele, Lea and Flood (2014) have it."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def sent(index: int, size: int, key: str) -> int:
    """A Feistel network of 8 rounds over two halves just wide enough, walked until it falls inside of the range."""
    digest = hashlib.blake2b(key.encode(), digest_size=64).digest()
    seeds = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(8)]
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        left, right = index >> half, index & 2**half - 1
        for seed in seeds:
            left, right = right, left ^ mixed(right ^ seed) & 2**half - 1
        index = left << half | right
        if index < size:
            return index


def dealt(count: int, weights: list[Fraction]) -> list[tuple[int, int]]:
    """The first positions' parts, and how many that part has had, by counting one after another: of those left to the
    parts k, k + 1, ... the part k has had floor(n x share + 1/2) of the first n."""
    had, passed, found = defaultdict(int), defaultdict(int), []
    for _ in range(count):
        for part in range(len(weights)):
            share = weights[part] / sum(weights[part:])
            passed[part] += 1
            if part == len(weights) - 1 or passed[part] * share + Fraction(1, 2) >= had[part] + 1:
                break
        found.append((part, had[part]))
        had[part] += 1
    return found


@pytest.mark.parametrize("key", ["key", "f/1337/0/0", ""])
def test_permutations_are_plain_pythons(key):
    for size in (*range(1, 34), 64, 65, 255, 256, 257, 1025):
        found = permute(np.arange(size), size, key)
        assert found.tolist() == [sent(index, size, key) for index in range(size)], size
    size = 2**44 + 3
    far = np.array([0, 1, size // 2, size - 2, size - 1])
    assert permute(far, size, key).tolist() == [sent(int(index), size, key) for index in far]


def test_small_permutations():
    """Changed only on purpose: every run's order of data would change with them."""
    assert [permute(np.arange(n), n, "key").tolist() for n in (1, 2, 3, 7, 10)] == [
        [0],
        [0, 1],
        [2, 1, 0],
        [2, 6, 4, 0, 5, 1, 3],
        [2, 6, 7, 0, 5, 8, 9, 4, 1, 3],
    ]


@pytest.mark.parametrize("weights", [[2, 1], [5, 3, 2], [1, 1, 1], [1, 9], [0.3, 0.3, 0.4], [1, 2, 4, 8], [7]])
def test_parts_are_dealt_one_after_another(weights):
    exact = [Fraction(str(weight)) for weight in weights]
    parts, counts = parts_at(np.arange(300), weights)
    assert list(zip(parts.tolist(), counts.tolist(), strict=True)) == dealt(300, exact)


def test_parts_by_hand():
    """Two thirds of the first n, rounded to the nearest: 1, 1, 2, 3, 3, 4; the half of two parts that are left: up."""
    assert parts_at(np.arange(6), [2, 1])[0].tolist() == [0, 1, 0, 0, 1, 0]
    assert parts_at(np.arange(6), [1, 1])[0].tolist() == [0, 1, 0, 1, 0, 1]
    assert parts_at(np.arange(10), [5, 3, 2])[0].tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 0, 1]


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([0.1, 0.2], [1, 2]),
        ([95, 5], [95, 5]),
        ([0.5, 1.25], [2, 5]),
        ([1e-3, 3], [1, 3000]),
        ([1 / 3], [3333333333333333]),
    ],
)
def test_weights_are_as_they_are_written(weights, whole):
    assert whole_weights(weights) == whole


def test_shares_where_a_product_leaves_64_bits():
    """Position 2^50 of weights in billionths: exact, as Python's integers say."""
    weights = [0.123456789, 0.876543211]
    positions = 2**50 + np.arange(40)
    parts, counts = parts_at(positions, weights)
    total = 10**9
    for position, part, count in zip(positions.tolist(), parts.tolist(), counts.tolist(), strict=True):
        before, after = ((n * 123456789 + total // 2) // total for n in (position, position + 1))
        assert (part, count) == ((0, before) if after > before else (1, position - before))


@pytest.mark.parametrize(("windows", "weights"), [([7], [1]), ([10, 3], [2, 1]), ([5, 64, 1], [3, 1, 2])])
def test_rows_of_many_epochs_are_plain_pythons(windows, weights):
    """Part p, in its e-th epoch, goes by the key FINGERPRINT/SEED/p/e."""
    count = 12 * max(windows)
    found = rows_at(np.arange(count), windows, weights, "abc", 7)
    expected = []
    for part, had in dealt(count, [Fraction(weight) for weight in weights]):
        epoch, index = divmod(had, windows[part])
        expected.append([part, sent(index, windows[part], f"abc/7/{part}/{epoch}")])
    assert found.tolist() == expected
    assert max(had // windows[part] for part, had in dealt(count, [Fraction(w) for w in weights])) >= 4


def test_rows_of_updates():
    """Literals, and that update n of B rows starts at position n x B, however far out, in whichever batch size."""
    assert rows_of_update([10, 3], [2, 1], "ffffffff", 1337, 0, 6).tolist() == [
        [0, 3], [1, 1], [0, 6], [0, 8], [1, 0], [0, 1],
    ]  # fmt: skip
    assert rows_of_update([10, 3], [2, 1], "ffffffff", 1337, 7, 6).tolist() == [
        [0, 1], [1, 2], [0, 4], [0, 9], [1, 0], [0, 5],
    ]  # fmt: skip
    for update, size in ((0, 4), (1, 4), (123_456, 5), (10**9, 3)):
        start = update * size
        plain = rows_at(np.arange(start, start + size), [10, 3], [2, 1], "f", 1)
        assert rows_of_update([10, 3], [2, 1], "f", 1, update, size).tolist() == plain.tolist()

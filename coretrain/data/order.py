"""Which windows make up the global batch of an update: a pure function of fingerprint, seed, update and batch size.

Row r of update u stands at global position u x batch_size + r. In a mixture, a closed form says which part a position
belongs to and how many earlier positions that part has had; each part then walks its own epochs. An epoch is a fresh
permutation of the part's windows, keyed by (fingerprint, seed, part, epoch): a Feistel network walked until it falls
inside the range (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"), so that nothing is stored.

Weights may change at given updates (`Stage`). A stage deals out its own positions by its own weights, and each part
goes on in its epochs where the stage before left it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
ROUNDS = 8


@dataclass(frozen=True)
class Stage:
    """From update `start` on, until the next stage's, the parts have these shares."""

    start: int
    weights: tuple[float, ...]


def rows_of_update(
    windows: Sequence[int],
    weights: Sequence[float],
    fingerprint: str,
    seed: int,
    update: int,
    batch_size: int,
    stages: Sequence[Stage] = (),
) -> Int64s:
    """The rows of one update's global batch as pairs (part, window), int64 [B, 2], in order.

    `windows` has the number of windows of every part (each at least 1), `weights` the parts' shares until the first of
    `stages`, whose starts rise.
    """
    start = update * batch_size
    shares, begun, before = stage_at(weights, stages, update, batch_size)
    parts, counts = parts_at(np.arange(start - begun, start - begun + batch_size), shares)
    return _rows(parts, counts + np.array(before, np.int64)[parts], windows, fingerprint, seed)


def stage_at(
    weights: Sequence[float], stages: Sequence[Stage], update: int, batch_size: int
) -> tuple[tuple[float, ...], int, list[int]]:
    """Of the stage that an update is in: its weights, the position at which it begins, and each part's rows before."""
    shares, begun, before = tuple(weights), 0, [0] * len(weights)
    for stage in stages:
        if stage.start > update:
            break
        position = stage.start * batch_size
        before = [a + b for a, b in zip(before, part_counts(position - begun, shares), strict=True)]
        shares, begun = stage.weights, position
    return shares, begun, before


def part_counts(rows: int, weights: Sequence[float]) -> list[int]:
    """How many of the first `rows` positions each part gets: with two parts its share, rounded to the nearest row."""
    left, counts, whole = rows, list[int](), whole_weights(weights)
    for part, weight in enumerate(whole):
        total = sum(whole[part:])
        counts.append(int(_share(np.array([left]), weight, total)[0]) if total else 0)
        left -= counts[-1]
    return counts


def rows_at(positions: Int64s, windows: Sequence[int], weights: Sequence[float], fingerprint: str, seed: int) -> Int64s:
    """The pairs (part, window) at global positions [N], int64 [N, 2], where the weights never change."""
    return _rows(*parts_at(positions, weights), windows, fingerprint, seed)


def _rows(parts: Int64s, counts: Int64s, windows: Sequence[int], fingerprint: str, seed: int) -> Int64s:
    if min(windows) < 1:
        raise ValueError(f"every part needs a window: {list(windows)}")
    rows = np.empty((len(parts), 2), np.int64)
    rows[:, 0] = parts
    for part, size in enumerate(windows):
        mine = parts == part
        epochs, indices = np.divmod(counts[mine], size)
        chosen = np.empty_like(indices)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            chosen[now] = permute(indices[now], size, f"{fingerprint}/{seed}/{part}/{epoch}")
        rows[mine, 1] = chosen
    return rows


def parts_at(positions: Int64s, weights: Sequence[float]) -> tuple[Int64s, Int64s]:
    """For global positions [N]: each one's part, and that part's count of earlier positions; both int64 [N].

    Parts are split off one after another: of the positions left to parts k, k+1, ... a share w_k/(w_k + w_k+1 + ...)
    goes to k, evenly spread (Bresenham's line). So shares are exact: over any multiple of the weights' common
    denominator they are met to the row.
    """
    parts = np.full(len(positions), len(weights) - 1, np.int64)
    counts = np.asarray(positions, np.int64).copy()
    left = np.ones(len(positions), bool)
    whole = whole_weights(weights)
    for part, weight in enumerate(whole[:-1]):
        total = sum(whole[part:])
        if not total:
            break  # all others weigh nothing, and none is left to them
        here = counts[left]
        before = _share(here, weight, total)
        taken = _share(here + 1, weight, total) > before
        slots = np.flatnonzero(left)
        parts[slots[taken]] = part
        counts[slots] = np.where(taken, before, here - before)
        left[slots[taken]] = False
    return parts, counts


def _share(positions: Int64s, weight: int, total: int) -> Int64s:
    """floor(positions x weight / total + 1/2), exact."""
    exact: Any = positions
    if len(positions) and (int(positions.max()) + 1) * total >= 2**62:
        exact = positions.astype(object)
    return np.asarray((exact * weight + total // 2) // total, np.int64)


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the same proportions; 0.1 counts as 1/10, as it is written."""
    fractions = [Fraction(repr(float(weight))) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * scale) for fraction in fractions]


def permute(indices: Int64s, size: int, key: str) -> Int64s:
    """Where a keyed permutation of range(size) sends `indices` [N]; O(N) work and memory, whatever `size`."""
    half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))
    mask = np.uint64((1 << int(half)) - 1)
    seeds = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), "<u8").astype(np.uint64)
    values = np.asarray(indices).astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], half, mask, seeds)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: UInt64s, half: np.uint64, mask: np.uint64, seeds: UInt64s) -> UInt64s:
    left, right = values >> half, values & mask
    for seed in seeds:
        left, right = right, left ^ (_mix(right ^ seed) & mask)
    return (left << half) | right


def _mix(values: UInt64s) -> UInt64s:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

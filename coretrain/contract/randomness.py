"""Counter-based randomness, named by what it is for, so that no draw depends on another or on the number of devices.

Initial weights: Philox 4x64-10 (Salmon et al. 2011) keyed by (seed, purpose), one counter range for each block of rows.
Dropout: a 32-bit integer hash of (key, token position, feature), which each stack computes with its own integer
operations: the two masks are equal bit for bit, whatever the sharding or the micro-batches.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

ROWS_PER_BLOCK = 256
MASK_32 = 0xFFFFFFFF
HASH_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
"""Multipliers of the `lowbias32` integer hash (C. Wellons, 2018), of low measured avalanche bias."""
FEATURE_STEP = 0x9E3779B9
"""Odd constant (2^32 / golden ratio) that spreads neighbouring counters before they are hashed."""


def stream_key(seed: int, purpose: str) -> int:
    """A 128-bit key for `purpose` under `seed`."""
    digest = hashlib.blake2b(f"{seed}:{purpose}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def raw_words(seed: int, purpose: str, block: int, count: int) -> NDArray[np.uint64]:
    """`count` words of the stream's block number `block`, each uniform over 64 bits."""
    # The raw words of Philox are fixed by its definition; numpy's own normal draws may change between its versions.
    generator = np.random.Philox(key=stream_key(seed, purpose), counter=block << 192)
    words: NDArray[np.uint64] = generator.random_raw(count)
    return words


def uniforms(seed: int, purpose: str, block: int, count: int) -> NDArray[np.float64]:
    """`count` float64 numbers in (0, 1), with 53 random bits each."""
    return ((raw_words(seed, purpose, block, count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def normal_rows(
    seed: int, name: str, shape: tuple[int, ...], std: float, start: int = 0, stop: int | None = None
) -> NDArray[np.float32]:
    """Rows [start, stop) of a normal tensor of `shape`: the same whether made whole or shard by shard.

    Box-Muller in float64 over the counter stream, rounded once to float32.
    """
    stop = shape[0] if stop is None else stop
    width = math.prod(shape[1:])
    result = np.empty((stop - start, width), np.float32)  # whole, in float64, an embedding would take six times as much
    for block in range(start // ROWS_PER_BLOCK, -(-stop // ROWS_PER_BLOCK)):
        first = block * ROWS_PER_BLOCK
        rows = min(ROWS_PER_BLOCK, shape[0] - first)
        pairs = -(-rows * width // 2)
        draws = uniforms(seed, f"weights/{name}", block, 2 * pairs)
        radius = np.sqrt(-2.0 * np.log(draws[:pairs]))
        angle = 2.0 * math.pi * draws[pairs:]
        values = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[: rows * width].reshape(rows, width)
        wanted = values[max(start - first, 0) : stop - first]
        at = max(first - start, 0)
        result[at : at + len(wanted)] = wanted * std
    return result.reshape(stop - start, *shape[1:])


def uniform_rows(seed: int, name: str, shape: tuple[int, ...], bound: float) -> NDArray[np.float32]:
    """A tensor of `shape`, uniform in (-bound, bound), in the same blocks of rows as `normal_rows`."""
    width, result = math.prod(shape[1:]), np.empty(shape, np.float32)
    for first in range(0, shape[0], ROWS_PER_BLOCK):
        part = result[first : first + ROWS_PER_BLOCK]
        draws = uniforms(seed, f"weights/{name}", first // ROWS_PER_BLOCK, len(part) * width)
        part[...] = ((2 * draws - 1) * bound).reshape(part.shape)
    return result


def dropout_key(seed: int, update: int, site: int) -> int:
    """The 32-bit key of one dropout site in one update. Site 0 is the embedding; block i has 1 + 2i and 2 + 2i."""
    return stream_key(seed, f"dropout/{update}/{site}") & MASK_32


def dropout_threshold(rate: float) -> int:
    """An element is kept where the top 24 bits of its hash are at least this."""
    return round(rate * 2**24)


def hash32(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """`lowbias32`: a bijection of 32-bit words."""
    first, second = (np.uint32(m) for m in HASH_MULTIPLIERS)
    x = (x ^ (x >> np.uint32(16))) * first
    x = (x ^ (x >> np.uint32(15))) * second
    return x ^ (x >> np.uint32(16))


def dropout_mask(key: int, rows: NDArray[np.integer], length: int, width: int, rate: float) -> NDArray[np.bool_]:
    """The reference mask [B, T, D], True where kept; `rows` [B] are the rows' indices in the update's global batch."""
    first = rows.astype(np.uint32)[:, None] * np.uint32(length)
    token = np.asarray(first + np.arange(length, dtype=np.uint32), np.uint32)
    token_hash = hash32(np.asarray(token ^ np.uint32(key), np.uint32))
    element: NDArray[np.uint32] = token_hash[..., None] + np.arange(width, dtype=np.uint32) * np.uint32(FEATURE_STEP)
    kept: NDArray[np.bool_] = (hash32(element) >> np.uint32(8)) >= dropout_threshold(rate)
    return kept

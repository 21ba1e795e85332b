"""The streams: Philox against its published vectors, normals against their distribution, dropout masks."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from scipy import stats

from coretrain.contract.randomness import (
    ROWS_PER_BLOCK,
    dropout_key,
    dropout_mask,
    dropout_threshold,
    hash32,
    normal_rows,
    raw_words,
    stream_key,
    uniforms,
)

GOLDEN = {
    "words": "289deb85789c679b",
    "weights": "405b407df849ee03",
    "mask": "c34c6101021f7e94",
}
"""Changed only on purpose: every run's weights and dropout would change with them.

Weights go through the machine's log and cosine: an ULP of float64 there moves a float32 with odds of about 1e-8.
"""
MASK_64 = 2**64 - 1


def philox(counter: int, key: int) -> list[int]:
    """Philox 4x64-10 as its paper has it (Salmon et al. 2011), in plain integers: the oracle."""
    c = [counter >> 64 * i & MASK_64 for i in range(4)]
    k = [key & MASK_64, key >> 64]
    for _ in range(10):
        first, second = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [second >> 64 ^ c[1] ^ k[0], second & MASK_64, first >> 64 ^ c[3] ^ k[1], first & MASK_64]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK_64, (k[1] + 0xBB67AE8584CAA73B) & MASK_64]
    return c


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_the_oracle_gives_random123s_known_answers():
    assert philox(0, 0) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    ones = [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0]
    assert philox(2**256 - 1, 2**128 - 1) == ones


@pytest.mark.parametrize("block", [0, 1, 77, 2**40])
def test_raw_words_are_philox_and_numpys_own(block):
    words = raw_words(7, "weights/a", block, 14)
    key = stream_key(7, "weights/a")
    expected = list(itertools.chain.from_iterable(philox((block << 192) + 1 + i, key) for i in range(4)))[:14]
    assert words.tolist() == expected
    numpys = np.random.Generator(np.random.Philox(key=key, counter=block << 192))
    assert np.array_equal(words, numpys.integers(0, 2**64, 14, dtype=np.uint64))


def test_a_stream_key_depends_on_seed_and_purpose_alone():
    keys = {stream_key(seed, purpose) for seed in (0, 1, 11, 2**63 - 1) for purpose in ("", "a", "1:a", "b")}
    assert len(keys) == 16
    assert all(0 <= key < 2**128 for key in keys)


def test_uniforms_never_touch_their_ends(monkeypatch):
    import coretrain.contract.randomness as randomness

    monkeypatch.setattr(randomness, "raw_words", lambda *_: np.array([0, 2**64 - 1], np.uint64))
    low, high = uniforms(0, "x", 0, 2)
    assert low == 2.0**-54  # log(0) would be an infinite weight
    assert high <= 1.0
    assert np.isfinite(np.sqrt(-2 * np.log([low, high]))).all()


def test_uniforms_are_uniform():
    draws = uniforms(3, "x", 0, 50_000)
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert ((draws > 0) & (draws < 1)).all()


@pytest.mark.parametrize("shape", [(5,), (ROWS_PER_BLOCK, 3), (2 * ROWS_PER_BLOCK + 9, 7), (300, 2, 3)])
def test_a_shard_is_the_rows_of_the_whole(shape):
    whole = normal_rows(5, "w", shape, 0.3)
    assert whole.shape == shape
    assert whole.dtype == np.float32
    edges = sorted({0, 1, shape[0] // 2, min(ROWS_PER_BLOCK, shape[0]), shape[0] - 1, shape[0]})
    for start, stop in itertools.combinations(edges, 2):
        assert np.array_equal(normal_rows(5, "w", shape, 0.3, start, stop), whole[start:stop]), (start, stop)


def test_more_rows_keep_whole_blocks():
    short, long = (normal_rows(5, "w", (rows, 4), 1.0) for rows in (ROWS_PER_BLOCK, 3 * ROWS_PER_BLOCK))
    assert np.array_equal(short, long[:ROWS_PER_BLOCK])
    assert not np.array_equal(long[:ROWS_PER_BLOCK], long[ROWS_PER_BLOCK : 2 * ROWS_PER_BLOCK])


@pytest.mark.parametrize("width", [1, 33, 64])
def test_normals_are_normal_and_independent(width):
    draws = normal_rows(11, "n", (60_000 // width, width), 1.0).astype(np.float64)
    flat = draws.ravel()
    n = flat.size
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # of x^p: E and var
        assert abs((flat**power).mean() - expected) < 4.5 * (variance / n) ** 0.5, power
    # Box-Muller's two halves, neighbours, and neighbouring blocks share nothing
    for lag in (1, width, ROWS_PER_BLOCK * width // 2, ROWS_PER_BLOCK * width):
        for power in (1, 2):
            a, b = flat[lag:] ** power, flat[:-lag] ** power
            assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / (n - lag) ** 0.5, (lag, power)


def test_the_std_scales_and_the_name_decides():
    one = normal_rows(1, "a", (40, 5), 1.0).astype(np.float64)
    np.testing.assert_allclose(normal_rows(1, "a", (40, 5), 0.02), one * 0.02, rtol=2e-7)  # two roundings to float32
    for seed, name in ((2, "a"), (1, "b")):
        assert not np.isin(normal_rows(seed, name, (40, 5), 1.0), one).any()


def test_hash32_is_a_bijection_and_lowbias32():
    words = np.arange(2**16, dtype=np.uint32)
    for block in (words, words << np.uint32(16), words + np.uint32(0x9E370000)):
        assert np.unique(hash32(block)).size == words.size

    def reference(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    some = np.array([0, 1, 2, 0xFFFFFFFF, 0xDEADBEEF, 123456789], np.uint32)
    assert hash32(some).tolist() == [reference(int(x)) for x in some]


def test_hash32_avalanches():
    words = (np.arange(4096, dtype=np.uint64) * 0x9E3779B1 % 2**32).astype(np.uint32)
    for bit in range(32):
        changed = hash32(words) ^ hash32(words ^ np.uint32(1 << bit))
        shares = np.array([(changed >> np.uint32(b) & np.uint32(1)).mean() for b in range(32)])
        assert np.abs(shares - 0.5).max() < 0.06, bit  # 0.008 is one standard error; the hash's own bias is far less


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_a_mask_drops_at_its_rate(rate):
    kept = dropout_mask(dropout_key(1, 2, 3), np.arange(8), 128, 192, rate)
    assert kept.shape == (8, 128, 192)
    assert kept.dtype == bool
    tolerance = 4.5 * (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) <= tolerance
    for axes in ((1, 2), (0, 2), (0, 1)):  # every row, place and feature too
        shares = kept.mean(axis=axes)
        assert np.abs(shares - (1 - rate)).max() <= 5 * (rate * (1 - rate) * shares.size / kept.size) ** 0.5
    assert dropout_threshold(rate) / 2**24 == pytest.approx(rate, abs=2**-24)


def test_the_threshold_itself_is_kept():
    # row 0, token 0 and feature 0 hash to this: at just that rate the element stays, one step above it goes
    value = int(hash32(hash32(np.array([77], np.uint32)))[0]) >> 8
    kept = [dropout_mask(77, np.array([0]), 1, 1, (value + step) / 2**24).item() for step in (-1, 0, 1)]
    assert kept == [True, True, False]


def test_a_mask_is_a_pure_function_of_the_global_row():
    key = dropout_key(1, 2, 3)
    whole = dropout_mask(key, np.arange(12), 32, 48, 0.3)
    for accumulation in (1, 2, 3, 4, 6, 12):  # micro-batches, or ranks
        parts = [dropout_mask(key, rows, 32, 48, 0.3) for rows in np.split(np.arange(12), accumulation)]
        assert np.array_equal(np.concatenate(parts), whole), accumulation
    scattered = np.array([7, 0, 11])
    for dtype in (np.int32, np.int64, np.uint32):
        assert np.array_equal(dropout_mask(key, scattered.astype(dtype), 32, 48, 0.3), whole[scattered])


def test_masks_of_other_updates_sites_seeds_rows_and_tokens_share_nothing():
    def mask(seed: int, update: int, site: int) -> np.ndarray:
        return dropout_mask(dropout_key(seed, update, site), np.arange(8), 64, 96, 0.4)

    base = mask(1, 2, 3)
    others = [mask(*where) for where in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 23, 3), (1, 2, 33), (3, 2, 1))]
    limit = 4.5 / base.size**0.5
    for other in others:
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < limit
    for a, b in ((base[1:], base[:-1]), (base[:, 1:], base[:, :-1]), (base[..., 1:], base[..., :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / a.size**0.5


def test_keys_of_sites_and_updates_are_all_different():
    keys = {dropout_key(0, update, site) for update in range(100) for site in range(25)}
    assert len(keys) == 2500
    assert all(0 <= key < 2**32 for key in keys)


def test_rows_beyond_32_bits_of_tokens_wrap_without_a_fault():
    huge = np.array([2**31])
    assert dropout_mask(1, huge, 4096, 2, 0.5).shape == (1, 4096, 2)


def test_nothing_has_changed():
    assert {
        "words": sha(raw_words(0, "golden", 5, 64)),
        "weights": sha(normal_rows(1337, "embed.token", (600, 24), 0.02)[::7]),
        "mask": sha(dropout_mask(dropout_key(1337, 41, 5), np.arange(3, 9), 40, 56, 0.1)),
    } == GOLDEN

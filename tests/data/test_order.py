"""The order of windows: each epoch a permutation, a mixture's shares exact, and all of it pinned."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.data.batch import batch_hash, windows
from coretrain.data.order import parts_at, permute, rows_at, rows_of_update, whole_weights


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000, 4097])
def test_an_epoch_is_a_permutation(size: int) -> None:
    shuffled = permute(np.arange(size), size, "key")
    assert sorted(shuffled) == list(range(size))
    if size >= 100:
        assert not np.array_equal(shuffled, np.arange(size))
        assert not np.array_equal(shuffled, permute(np.arange(size), size, "other"))


def test_the_permutation_looks_random() -> None:
    size = 1000
    everything = np.array([permute(np.arange(size), size, str(key)) for key in range(200)])
    bins = np.array([np.histogram(everything[:, place], 10, (0, size))[0] for place in range(0, size, 10)])
    assert ((bins - 20) ** 2 / 20).sum(1).mean() == pytest.approx(9, abs=1.5)  # chi-square, 9 degrees of freedom
    neighbours = np.diff(everything.astype(np.int64), axis=1)
    assert (neighbours == 1).mean() == pytest.approx(1 / size, rel=0.4)
    correlation = [np.corrcoef(np.arange(size), row)[0, 1] for row in everything]
    assert abs(np.mean(correlation)) < 0.01
    assert np.std(correlation) == pytest.approx(size**-0.5, rel=0.25)


def test_a_small_permutation_reaches_every_order() -> None:
    seen = {tuple(permute(np.arange(4), 4, str(key)).tolist()) for key in range(600)}
    assert len(seen) == 24


def test_large_permutations_need_no_memory() -> None:
    size = 10**12 + 39
    found = permute(np.arange(size - 1000, size), size, "key")
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < size


def test_each_epoch_has_every_window_once_in_another_order() -> None:
    rows = [window for update in range(30) for _, window in rows_of_update([50], [1.0], "f", 1, update, 5)]
    epochs = [rows[n : n + 50] for n in range(0, 150, 50)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for other in (rows_of_update([50], [1.0], "g", 1, 0, 50), rows_of_update([50], [1.0], "f", 2, 0, 50)):
        assert other[:, 1].tolist() != epochs[0]
    assert rows_of_update([50], [1.0], "f", 1, 0, 150)[:, 1].tolist() == rows  # batch size doesn't move positions


@pytest.mark.parametrize(
    "weights", [[95, 5], [0.95, 0.05], [0.7, 0.2, 0.1], [1, 1, 1, 1], [3], [5, 1e-3], [1, 2, 4, 8]]
)
def test_mixture_shares_are_exact(weights: list[float]) -> None:
    whole = whole_weights(weights)
    period = sum(whole) // np.gcd.reduce(whole)
    count = int(period * max(1, 10_000 // period))
    parts, counts = parts_at(np.arange(count), weights)
    shares = np.bincount(parts, minlength=len(weights))
    assert shares.tolist() == [count * weight // sum(whole) for weight in whole]
    for part in range(len(weights)):
        assert counts[parts == part].tolist() == list(range(shares[part]))
    some = np.random.default_rng(0).integers(0, count, 100)  # each position on its own says the same
    alone = parts_at(some, weights)
    assert np.array_equal(alone[0], parts[some])
    assert np.array_equal(alone[1], counts[some])
    running = np.cumsum(parts[:, None] == np.arange(len(weights)), 0)
    ideal = np.arange(1, count + 1)[:, None] * np.array(whole) / sum(whole)
    assert abs(running - ideal).max() < len(weights)


def test_95_to_5_in_every_hundred_rows() -> None:
    parts, _ = parts_at(np.arange(100_000), [95, 5])
    assert (parts.reshape(-1, 100).sum(1) == 5).all()


def test_shares_stay_exact_far_out() -> None:
    far = 2**40 + np.arange(1000)
    parts, counts = parts_at(far, [0.123456789, 0.876543211])
    assert set(parts) == {0, 1}
    assert (np.diff(counts[parts == 1]) == 1).all()
    assert int(counts[parts == 0][0]) == pytest.approx(2**40 * 0.123456789, abs=2)


PINNED_ROWS = [[0, 792], [0, 396], [0, 531], [0, 281], [0, 232], [0, 443], [0, 126], [0, 501]]


PINNED_HASH = "8c6c7938349a7427"


def test_the_order_is_pinned() -> None:
    """Logged batch hashes of earlier runs stay comparable only while this never changes."""
    assert rows_of_update([1000, 30], [95, 5], "fingerprint", 1337, 5, 8).tolist() == PINNED_ROWS
    assert batch_hash(windows(np.arange(6).reshape(2, 3))) == PINNED_HASH


def test_a_batch_that_one_part_takes_whole() -> None:
    """Nothing is left for the parts after it, nor where no position is asked for."""
    assert rows_at(np.arange(1), [5, 5, 5], [8, 1, 1], "f", 0)[:, 0].tolist() == [0]
    assert rows_at(np.arange(0), [5, 5, 5], [8, 1, 1], "f", 0).shape == (0, 2)


def test_a_part_without_windows_is_named() -> None:
    with pytest.raises(ValueError, match=r"every part needs a window: \[5, 0\]"):
        rows_at(np.arange(4), [5, 0], [1, 1], "f", 0)

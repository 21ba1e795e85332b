"""Batches out of prepared data: mixtures, hashes, validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coretrain.data.batches import global_batch, validation_batches, validation_bytes_per_token
from coretrain.data.order import batch_hash, rows_at, rows_of_update
from tests.support.corpora import configure, make_texts, quiet, write_texts


def test_a_mixture_repeats_its_small_part(tmp_path: Path, corpus: Path) -> None:
    small = write_texts(tmp_path / "small", make_texts(12, seed=9))
    mixture = f'[{{source = "{corpus}", weight = 95}}, {{source = "{small}", weight = 5}}]'
    config = configure(
        tmp_path,
        "unused",
        **{"data.mixture": mixture, "data.tokenizer": "trained", "data.tokenizer_vocab": 300, "model.context": 16},
    )
    data = quiet(config)
    windows = [part.train.windows(16) for part in data.parts]
    rows = rows_at(np.arange(100 * windows[1]), windows, data.weights, data.fingerprint, 1337)
    assert np.bincount(rows[:, 0]).tolist() == [95 * windows[1], 5 * windows[1]]
    assert (np.bincount(rows[rows[:, 0] == 1, 1]) == 5).all()
    assert data.fingerprint != quiet(configure(tmp_path, corpus)).fingerprint
    first = validation_batches(data, config)
    again = validation_batches(data, config)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    batch = global_batch(data, config, 3)
    wanted = [
        data.parts[part].train.read(int(window), 16)
        for part, window in rows_of_update(windows, [95, 5], data.fingerprint, config.train.seed, 3, 8)
    ]
    assert np.array_equal(batch, wanted)


def test_global_batches_and_their_hash(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    data = quiet(config)
    batch = global_batch(data, config, 7)
    assert batch.shape == (8, 33)
    assert batch.dtype == np.int32
    assert batch_hash(batch) == batch_hash(batch.astype(np.int64)) == batch_hash(np.asfortranarray(batch))
    assert len(batch_hash(batch)) == 16
    assert batch_hash(batch) != batch_hash(batch[::-1])
    assert batch_hash(batch) != batch_hash(global_batch(data, config, 8))
    epoch = [
        row.tobytes() for update in range(data.train.windows(32) // 8) for row in global_batch(data, config, update)
    ]
    assert len(set(epoch)) == len(epoch)


def test_validation_is_the_same_first_windows(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus, **{"train.eval_batches": 2})
    data = quiet(config)
    batches = validation_batches(data, config)
    assert [batch.shape for batch in batches] == [(8, 33), (8, 33)]
    assert np.array_equal(np.concatenate(batches), [data.validation.read(window, 32) for window in range(16)])
    everything = configure(tmp_path, corpus, **{"train.eval_batches": 10_000})
    assert sum(map(len, validation_batches(data, everything))) == data.validation.windows(32)
    labels = np.concatenate([batch[:, 1:].ravel() for batch in batches])
    text = data.tokenizer.decode(labels[labels != data.tokenizer.eot])
    exact = len(text.encode(errors="surrogateescape"))
    assert validation_bytes_per_token(data, config) == pytest.approx(exact / len(labels), rel=0.01)
    assert validation_bytes_per_token(data, everything) == pytest.approx(data.validation.bytes_per_token, rel=0.01)

"""Batches out of prepared data: mixtures, hashes, validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coretrain.data.batch import batch_hash, stacked
from coretrain.data.batches import global_batch, validation_batches, validation_bytes_per_token
from coretrain.data.order import rows_at, rows_of_update
from tests.support.batches import same
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
    assert all(same(one, other) for one, other in zip(first, again, strict=True))
    batch = global_batch(data, config, 3)
    wanted = [
        data.parts[part].train.read(int(window), 16)
        for part, window in rows_of_update(windows, [95, 5], data.fingerprint, config.train.seed, 3, 8)
    ]
    assert same(batch, stacked(wanted))


def test_global_batches_and_their_hash(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    data = quiet(config)
    batch = global_batch(data, config, 7)
    assert batch.tokens.shape == batch.labels.shape == (8, 32)
    assert batch.tokens.dtype == batch.labels.dtype == np.int32
    assert np.array_equal(batch.tokens[:, 1:], batch.labels[:, :-1])
    assert batch.positions is None
    assert batch.weights is None
    assert len(batch_hash(batch)) == 16
    assert batch_hash(batch) != batch_hash(batch.rows(slice(None, None, -1)))
    assert batch_hash(batch) != batch_hash(global_batch(data, config, 8))
    epoch = [
        row.tobytes()
        for update in range(data.train.windows(32) // 8)
        for row in global_batch(data, config, update).tokens
    ]
    assert len(set(epoch)) == len(epoch)


def test_validation_is_the_same_first_windows(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus, **{"train.eval_batches": 2})
    data = quiet(config)
    batches = validation_batches(data, config)
    assert [len(batch) for batch in batches] == [8, 8]
    for number, batch in enumerate(batches):
        wanted = [data.validation.read(window, 32) for window in range(8 * number, 8 * number + 8)]
        assert same(batch, stacked(wanted))
    everything = configure(tmp_path, corpus, **{"train.eval_batches": 10_000})
    assert sum(map(len, validation_batches(data, everything))) == data.validation.windows(32)
    labels = np.concatenate([batch.labels.ravel() for batch in batches])
    text = data.tokenizer.decode(labels[labels != data.tokenizer.eot])
    exact = len(text.encode(errors="surrogateescape"))
    assert validation_bytes_per_token(data, config) == pytest.approx(exact / len(labels), rel=0.01)
    assert validation_bytes_per_token(data, everything) == pytest.approx(data.validation.bytes_per_token, rel=0.01)

"""Preferences from files to batches: checks with known answers, and what a user sees."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from coretrain.data.batch import batch_hash
from coretrain.data.preferences.encode import ID
from coretrain.data.preferences.split import FIRST, SECOND, PairSplit
from coretrain.data.shards import read_shard, write_shard
from tests.support import pairs_probes, preference_probes

PROBES = preference_probes.PROBES | pairs_probes.PROBES


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Nothing here must outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def test_a_hundred_thousand_pairs(tmp_path):
    """Each stands in one row, and rows are full; within seconds, since nothing is done pair by pair but the packing."""
    count, spelling = 100_000, np.array([0])
    lengths = 1 + np.arange(count) % 5
    documents = [
        np.concatenate([spelling, [4], np.full(size, 9), np.full(6 - size, 11), [ID * 300]]).astype(np.uint32)
        for size in lengths.tolist()
    ]
    ends = np.cumsum([len(one) for one in documents])
    write_shard(tmp_path / "0.bin", "ab" * 32, 2000, np.concatenate(documents), ends, 7, "cd" * 32)
    split = PairSplit("train", [read_shard(tmp_path / "0.bin", "ab" * 32, 2000)], 64)
    assert split.windows(64) == count * 8 // 64, "two prompts of a token, and answers of 6 in all"
    assert sorted(pair for row in split.packed for pair in row) == list(range(count))
    assert split.samples[:, FIRST].tolist() == lengths.tolist()
    assert (split.samples[:, FIRST] + split.samples[:, SECOND] == 6).all()
    assert split.read(0, 64).planes["pair_share"].tolist() == [1] * 8
    wider = split.with_slots(11, False)
    assert wider.packed is split.packed
    assert wider.read(5, 64).planes["pair_share"].tolist() == [1] * 8 + [0] * 3
    again = pickle.loads(pickle.dumps(wider))
    assert batch_hash(again.read(5, 64).map(lambda array: array[None])) == batch_hash(
        wider.read(5, 64).map(lambda array: array[None])
    ), "as a loader's worker has it"


@pytest.mark.parametrize("name", list(PROBES))
def test_known_answers(name, tmp_path):
    PROBES[name](tmp_path)

"""Damaged data: shards and manifests that are broken, missing, newer or another tokenizer's are refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.data import parts, shards
from coretrain.data.shards import HEADER, read_shard, write_shard
from coretrain.data.splits import Data
from tests.support.corpora import configure, quiet
from tests.support.files import flip_bit
from tests.support.refusal import refused


def shard_path(data: Data, split: str = "train") -> Path:
    path: Path = getattr(data, split).shards[0].path
    return path


@pytest.mark.parametrize("offset", [HEADER.size + 100, -1, 40, 60, 80])
def test_a_flipped_bit_is_refused(tmp_path: Path, corpus: Path, offset: int) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    flip_bit(path, offset, 4)
    with pytest.raises(UserError, match=path.name):
        quiet(config)
    flip_bit(path, offset, 4)
    quiet(config)


@pytest.mark.parametrize("keep", [0, 100, HEADER.size, 1000, -1])
def test_a_truncated_shard_is_refused(tmp_path: Path, corpus: Path, keep: int) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=path.name):
        quiet(config)


def test_a_missing_shard_is_refused(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        quiet(config)


def test_another_tokenizers_shard_is_refused(tmp_path: Path, corpus: Path) -> None:
    path = shard_path(quiet(configure(tmp_path, corpus)))
    other = configure(tmp_path, corpus, **{"data.tokenizer": "gpt2"})
    target = shard_path(quiet(other))
    target.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=f"{target.name} was made with another tokenizer"):
        quiet(other)


def test_a_newer_shard_is_refused(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    raw = bytearray(path.read_bytes())
    raw[8] += 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"{path.name} has format version 2, newer"):
        quiet(config)


def test_a_damaged_or_newer_manifest_is_refused(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = quiet(config).parts[0].folder / "manifest.json"
    good = path.read_text()
    manifest = json.loads(good)
    manifest["shards"].pop()
    for bad, words in (
        (json.dumps(manifest), "damaged"),
        (good[:50], "damaged .*: delete its folder and prepare the data again"),
        ("[]", "damaged"),
        (json.dumps(json.loads(good) | {"version": 2}), "newer"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=rf"manifest\.json.* {words}"):
            quiet(config)


def test_ids_out_of_the_vocabulary_are_refused(tmp_path: Path, corpus: Path) -> None:
    data = quiet(configure(tmp_path, corpus))
    with refused("tokenizers/id-outside-vocabulary", "x.bin", "257"):
        write_shard(
            tmp_path / "x.bin", data.tokenizer.fingerprint, 257, np.array([1, 257]), np.array([2]), 1, "00" * 32
        )
    assert not (tmp_path / "x.bin").exists()
    path = shard_path(data)
    raw = bytearray(path.read_bytes())
    raw[HEADER.size : HEADER.size + 2] = (999).to_bytes(2, "little")
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"{path.name} has token id 999"):
        read_shard(path, data.tokenizer.fingerprint, 257).check(hashlib.sha256(raw).hexdigest())


def test_a_large_corpus_is_hashed_again_only_when_changed(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ALWAYS_HASHED", 0)
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    hashed: list[Path] = []
    plain = shards.sha256_of
    monkeypatch.setattr(shards, "sha256_of", lambda path: hashed.append(path) or plain(path))
    quiet(config)
    assert hashed == []
    flip_bit(path, HEADER.size + 100, 4)
    with pytest.raises(UserError, match=path.name):
        quiet(config)
    assert hashed == [path]

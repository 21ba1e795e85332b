"""Damaged data: shards and manifests that are broken, missing, newer or another tokenizer's are refused by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

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


def edited(manifest: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """A copy with the value at `place` (`shards.0.split`) changed, or without it where `value` is `...`."""
    copy: dict[str, Any] = json.loads(json.dumps(manifest))
    *parents, leaf = (int(part) if part.isdigit() else part for part in place.split("."))
    owner: Any = copy
    for parent in parents:
        owner = owner[parent]
    if value is ...:
        del owner[leaf]
    else:
        owner[leaf] = value
    return copy


WRONG: list[tuple[str, list[Any]]] = [
    ("version", [..., "1", 0, None]),
    ("vocab", [..., "257", 256, -1]),
    ("tokenizer", [..., 7]),
    ("source", [..., None]),
    ("tokenizer_fingerprint", [..., "ab", 7]),
    ("fingerprint", [..., None, "0" * 64]),
    ("shards", [..., None, {}, [7]]),
    ("shards.0.split", [..., "validation", "test"]),
    ("shards.0.file", [..., "../x", 7]),
    ("shards.0.tokens", [..., "7", -1, 7]),
    ("shards.0.bytes", [..., 1.5, 7]),
    ("shards.0.documents_hash", [..., "0" * 64]),
    ("shards.0.sha256", [..., None, "0" * 64]),
    ("splits", [..., [], {}]),
    ("splits.train.tokens", [..., 7]),
]


def test_each_field_of_the_manifest_is_checked(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = quiet(config).parts[0].folder / "manifest.json"
    good = path.read_text()
    for place, values in WRONG:
        for value in values:
            path.write_text(json.dumps(edited(json.loads(good), place, value)))
            with pytest.raises(UserError, match=f"{path.parent.name}.* prepare the data again"):
                quiet(config)
    path.write_text(good)
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

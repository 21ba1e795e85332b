"""The interchange form: bits come back, what the table doesn't have is refused, damage is named."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import load_interchange, newest_interchange, save_interchange
from coretrain.checkpoint.manifest import DamagedCheckpoint, read_sealed
from tests.support.checkpoints import CONFIG, PROGRESS, groups, native
from tests.support.files import flip_bit
from tests.support.refusal import refused


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shard_bytes", [2**31, 20_000])
def test_interchange_gives_back_every_bit(tmp_path: Path, dtype: type, shard_bytes: int) -> None:
    saved = groups(dtype)
    saved["first_moment"]["embed.token"] = np.asfortranarray(saved["first_moment"]["embed.token"])
    save_interchange(tmp_path / "i", CONFIG, saved, PROGRESS, "torch", shard_bytes)
    loaded = load_interchange(tmp_path / "i")
    assert (loaded.config, loaded.progress, loaded.stack) == (CONFIG, PROGRESS, "torch")
    assert loaded.groups.keys() == saved.keys()
    for group, tensors in saved.items():
        assert loaded.groups[group].keys() == tensors.keys()
        for name, value in tensors.items():
            back = loaded.groups[group][name]
            assert back.dtype == value.dtype
            assert back.tobytes() == value.tobytes()
    assert (len(list((tmp_path / "i").glob("*.safetensors"))) > 3) == (shard_bytes == 20_000)
    # reading is lazy: what was loaded can be saved again, tensor by tensor
    save_interchange(tmp_path / "again", loaded.config, loaded.groups, loaded.progress, loaded.stack, shard_bytes)
    assert read_sealed(tmp_path / "again").tensors == read_sealed(tmp_path / "i").tensors


def test_interchange_replaces_an_older_one_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "i"
    save_interchange(target, CONFIG, groups(), PROGRESS, "torch")
    save_interchange(target, CONFIG, {"parameters": groups()["parameters"]}, replace(PROGRESS, update=8), "jax")
    loaded = load_interchange(target)
    assert (loaded.progress.update, loaded.stack, list(loaded.groups)) == (8, "jax", ["parameters"])
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with refused("checkpoint/target-not-a-checkpoint", "home"):
        save_interchange(tmp_path / "home", CONFIG, groups(), PROGRESS, "torch")
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_interchange_refuses_what_the_table_does_not_have(tmp_path: Path) -> None:
    def refused(saved: dict[str, dict[str, np.ndarray]], message: str) -> None:
        with pytest.raises(UserError, match=message):
            save_interchange(tmp_path / "i", CONFIG, saved, PROGRESS, "torch")
        assert list(tmp_path.iterdir()) == []

    wrong = groups()
    wrong["parameters"]["norm.weight"] = wrong["parameters"]["norm.weight"].astype(np.float16)
    refused(wrong, r"norm\.weight is float16")
    wrong = groups()
    del wrong["parameters"]["norm.weight"]
    refused(wrong, r"lacks norm\.weight")
    wrong = groups()
    wrong["second_moment"]["norm.weight"] = np.zeros(31, np.float32)
    refused(wrong, r"second_moment\): norm\.weight has shape")
    wrong = groups()
    wrong["first_moment"]["nonsense"] = np.zeros(31, np.float32)
    refused(wrong, "nonsense")


def test_damage_is_named(tmp_path: Path) -> None:
    def damaged(change: object, message: str) -> None:
        target = tmp_path / "i"
        save_interchange(target, CONFIG, groups(), PROGRESS, "torch", 20_000)
        assert callable(change)
        change(target)
        with pytest.raises(DamagedCheckpoint, match=message):
            load_interchange(target)

    shard = "second_moment-00002.safetensors"
    damaged(lambda f: flip_bit(f / shard, -1), f"{shard} is damaged: its SHA-256")
    damaged(lambda f: flip_bit(f / shard, 20), f"{shard} is damaged: its SHA-256")
    damaged(lambda f: os.truncate(f / shard, 1000), f"{shard} is damaged: it has 1000 bytes")
    damaged(lambda f: (f / shard).unlink(), f"{shard} is missing")
    damaged(lambda f: os.truncate(f / "manifest.json", 1000), r"manifest\.json is damaged")

    def other_progress(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace('"data_index": 9', '"data_index": 8'))

    damaged(other_progress, r"manifest\.json is damaged: its checksum")


def test_native_checkpoints_are_no_interchange(tmp_path: Path) -> None:
    with refused("checkpoint/not-interchange", "torch"):
        load_interchange(native(CheckpointFolder(tmp_path), 1))


def test_newest_interchange_of_a_run(tmp_path: Path) -> None:
    with refused("checkpoint/no-interchange-in-run"):
        newest_interchange(tmp_path)
    for update in (5, 20):
        save_interchange(tmp_path / "interchange" / f"update-{update:08d}", CONFIG, groups(), PROGRESS, "torch")
    newest = tmp_path / "interchange" / "update-00000020"
    assert newest_interchange(tmp_path) == newest
    assert newest_interchange(newest) == newest

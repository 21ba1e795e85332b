"""A manifest byte by byte, which process hashes which file, which block each owner has, where a shard is full."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.fragments import Fragment, block_of, read_fragments, write_fragments
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress, digests, read_sealed, seal, verify
from coretrain.contract.parameters import Parameter
from tests.support.checkpoints import CONFIG, PROGRESS, groups, native
from tests.support.refusal import refused


def test_a_manifest_by_hand(tmp_path):
    """Everything that a run goes on with, each file's length and SHA-256, and a checksum of all that, keys in order."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "part").write_bytes(b"12345")
    seal(tmp_path, PROGRESS, CONFIG, "jax", beside={"chat_template.jinja": "ab"})
    raw = json.loads((tmp_path / "manifest.json").read_text())
    checksum = raw.pop("checksum")
    assert raw == {
        "version": 1,
        "stack": "jax",
        "config": json.loads(CONFIG.to_json()),
        "progress": {
            "update": 7, "applied": 6, "tokens": 1792, "data_index": 9, "data_fingerprint": "ab" * 16,
            "batch_size": 16, "seed": 1337, "health": {"window": [0.30000000000000004, 1e-300, 3.0], "skipped": 1},
            "loss_scale": {"scale": 65536.0, "good": 12}, "best": {"update": 5, "val_loss": 0.3333333333333333},
        },
        "files": {
            "state/part": {
                "bytes": 5,
                "sha256": "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5",
            }
        },
        "tensors": {},
        "beside": {"chat_template.jinja": "ab"},
    }  # fmt: skip
    assert checksum == hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    found = verify(tmp_path)
    assert (found.progress, found.config, found.stack) == (PROGRESS, CONFIG, "jax")
    assert found.beside == {"chat_template.jinja": "ab"}


def test_a_start_knows_nothing():
    empty = {
        "update": 0,
        "applied": 0,
        "tokens": 0,
        "data_index": 0,
        "data_fingerprint": "",
        "batch_size": 0,
        "seed": 0,
    }
    assert Progress().to_json() == empty | {"health": {}, "loss_scale": {}, "best": None}


@pytest.mark.parametrize(("newest", "fits"), [(1, True), (2, False)])
def test_a_manifest_of_the_next_version_is_refused(tmp_path, newest, fits):
    seal(tmp_path, PROGRESS, CONFIG, "torch")
    raw = json.loads((tmp_path / "manifest.json").read_text())
    del raw["checksum"]
    raw["version"] = newest
    checksum = hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps(raw | {"checksum": checksum}))
    if fits:
        assert read_sealed(tmp_path).progress == PROGRESS
    else:
        with refused("checkpoint/format-too-new", "2"):
            read_sealed(tmp_path)


def test_who_hashes_which_file_by_hand(tmp_path):
    """The largest first, each to whom has least so far: a to the first, b and then c to the second, d to the first; the
    empty ones to the second, which has 110 bytes and the first 120. The manifest isn't one of them."""
    sizes = {"a": 100, "b": 60, "c": 50, "d": 20, "e": 0, "f": 0}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "manifest.json").write_bytes(bytes(500))
    assert [sorted(digests(tmp_path, index, 2)) for index in (0, 1)] == [["a", "d"], ["b", "c", "e", "f"]]
    assert list(digests(tmp_path)) == sorted(sizes)
    assert digests(tmp_path)["d"] == {"bytes": 20, "sha256": hashlib.sha256(bytes(20)).hexdigest()}


def test_empty_files_are_shared_too(tmp_path):
    for name in "abcd":
        (tmp_path / name).write_bytes(b"")
    assert [list(digests(tmp_path, index, 2)) for index in (0, 1)] == [["a", "c"], ["b", "d"]]


def test_which_block_each_owner_has_by_hand():
    """101 rows padded to 128, over 4 owners: 32 each, the last has 5, of 256 over 8 some have none; 48 columns by 2."""
    row = Parameter("embed.token", (101, 48), "normal", 0.02, True, ("vocab", "width"), "embed.token", None, False)
    found = [block_of(row, 128, {"vocab": (4, index)}) for index in range(4)]
    assert found == [((0, 32), (0, 48)), ((32, 64), (0, 48)), ((64, 96), (0, 48)), ((96, 101), (0, 48))]
    assert [block_of(row, 256, {"vocab": (8, index)})[0] for index in (3, 4, 7)] == [(96, 101), (101, 101), (101, 101)]
    assert block_of(row, 101, {"width": (2, 1)}) == ((0, 101), (24, 48))
    assert block_of(row, 101, {"heads": (2, 1)}) == ((0, 101), (0, 48))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"start": 1, "stop": 7}, "fragments-unreadable"),  # one number beyond its block
        ({"start": 1}, "fragments-gap"),
        ({"block": [[0, 2], [0, 4]]}, "fragments-unreadable"),
        ({"shape": [2, 2]}, "fragments-unreadable"),
    ],
)
def test_a_fragment_lies_inside_of_its_tensor(tmp_path, change, code):
    values = np.arange(6, dtype=np.float32)
    write_fragments(tmp_path, 0, [Fragment("parameters", "w", (2, 3), ((0, 2), (0, 3)), 0, values)])
    index = json.loads((tmp_path / "00000.json").read_text())
    index["fragments"][0] |= change
    (tmp_path / "00000.json").write_text(json.dumps(index))
    if code is None:
        assert read_fragments(tmp_path)["parameters"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    else:
        with refused(f"checkpoint/{code}"):
            read_fragments(tmp_path)


def test_two_fragments_of_the_same_numbers_are_one_too_many(tmp_path):
    """Numbers 0 to 3, and 3 to 6 where the fourth should be the first: each number belongs to one."""
    values = np.arange(6, dtype=np.float32)
    for rank, (start, part) in enumerate(((0, values[:4]), (3, values[3:]))):
        write_fragments(tmp_path, rank, [Fragment("parameters", "w", (2, 3), ((0, 2), (0, 3)), start, part)])
    with refused("checkpoint/fragments-gap", "4"):
        read_fragments(tmp_path)


def test_a_shard_takes_what_fills_it_just_so(tmp_path):
    """The embedding [300, 32] and positions [16, 32] in float32 are 40,448 bytes: with room for them both are in the
    first shard, with one byte less each has its own."""
    state = {"parameters": groups()["parameters"]}
    first = 4 * 32 * (300 + 16)
    for limit, together in ((first, True), (first - 1, False)):
        folder = tmp_path / str(limit)
        save_interchange(folder, CONFIG, state, PROGRESS, "torch", limit)
        index = load_interchange(folder).groups["parameters"].index
        assert (index["embed.token"]["file"] == index["embed.position"]["file"]) is together
        assert index["embed.token"] == {"file": "parameters-00001.safetensors", "dtype": "float32", "shape": [300, 32]}


def test_only_whole_floats_are_interchanged(tmp_path):
    state = {"parameters": {name: value.astype(np.float16) for name, value in groups()["parameters"].items()}}
    with refused("checkpoint/interchange-dtype-wrong", "float16"):
        save_interchange(tmp_path / "x", CONFIG, state, PROGRESS, "torch")


def test_a_moment_of_another_shape_is_refused(tmp_path):
    state = groups()
    state["first_moment"]["norm.weight"] = np.zeros(31, np.float32)
    with refused("contract/tensor-shape-wrong", "first_moment"):
        save_interchange(tmp_path / "x", CONFIG, state, PROGRESS, "torch")


def test_a_pinned_one_stays(tmp_path: Path):
    folder = CheckpointFolder(tmp_path)
    for update in (1, 2, 3, 4):
        native(folder, update)
    folder.pin("update-00000002", "ff")
    folder.prune(1)
    assert [path.name for path in folder.complete()] == ["update-00000004", "update-00000002"]
    assert folder.pins() == {"update-00000002": "ff"}

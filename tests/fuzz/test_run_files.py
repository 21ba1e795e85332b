"""A run's checkpoints, journal and prepared data that few expect: taken, passed over, or refused in a sentence."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.fragments import Fragment, read_fragments, write_fragments
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import MANIFEST, _checksum, read_sealed, verify
from parity.localize.command import _read_inputs
from tests.support.checkpoints import CONFIG, groups
from tests.support.checkpoints import PROGRESS as DONE
from tests.support.fuzzing import damaged, ends_well, fuzzed, mutated_bytes, replaced


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An interchange checkpoint."""
    folder = tmp_path_factory.mktemp("run") / "interchange" / "update-00000007"
    save_interchange(folder, CONFIG, groups(), DONE, "torch", 30_000)
    return folder


@pytest.fixture(scope="module")
def fragments(tmp_path_factory) -> Path:
    """A state in two pieces."""
    folder = tmp_path_factory.mktemp("state") / "state"
    value = np.arange(12, dtype=np.float32)
    for rank in range(2):
        part = value[6 * rank : 6 * rank + 6]
        write_fragments(folder, rank, [Fragment("parameters", "a", (3, 4), ((0, 3), (0, 4)), 6 * rank, part)])
    return folder


def read_all(group: Any) -> None:
    for name in group:
        group[name]


def sealed_again(value: dict[str, Any]) -> dict[str, Any]:
    return value | {"checksum": _checksum({key: one for key, one in value.items() if key != "checksum"})}


@fuzzed(10)
def test_manifests_of_checkpoints(checkpoint, random):
    path = checkpoint / MANIFEST

    def read() -> None:
        read_sealed(checkpoint)
        verify(checkpoint)
        for group in load_interchange(checkpoint).groups.values():
            read_all(group)

    with replaced(path, damaged(random, path, sealed_again)):
        ends_well("a checkpoint's manifest", read)


@fuzzed(3)
def test_shards_of_checkpoints(checkpoint, random):
    path = random.choice(sorted(checkpoint.glob("*.safetensors")))
    with replaced(path, damaged(random, path)):
        ends_well("a checkpoint's shards", lambda: load_interchange(checkpoint))


@fuzzed(6)
def test_fragments(fragments, random):
    path = random.choice(sorted(fragments.glob(random.choice(("*.json", "*.json", "*.safetensors")))))
    with replaced(path, damaged(random, path)):
        ends_well("fragments", lambda: [read_all(group) for group in read_fragments(fragments).values()])


@fuzzed(2)
def test_the_best(checkpoint, random):
    folder = CheckpointFolder(checkpoint.parent)
    folder.note_best(7, 4.5)
    path = checkpoint.parent / "best.json"
    path.write_bytes(damaged(random, path))
    ends_well("best.json", lambda: (folder.best(), folder.prune(1)))


@fuzzed(2)
def test_inputs_of_the_localizer(checkpoint, random):
    path = checkpoint.parents[1] / "x.npz"
    arrays: dict[str, Any] = {f"weights/{name}": value for name, value in groups()["parameters"].items()}
    arrays |= {"tokens": np.zeros((2, 9), np.int32), "labels": np.ones((2, 9), np.int32)}
    np.savez(path, **{name: value for name, value in arrays.items() if random.random() < 0.98})
    path.write_bytes(
        changed_within(random, path) if random.random() < 0.5 else mutated_bytes(random, path.read_bytes())
    )
    ends_well("--inputs", lambda: _read_inputs(path, CONFIG.changed(train__batch_size=2)))


def changed_within(random: Random, path: Path) -> bytes:
    """An archive with one member's bytes changed, its checksums right."""
    again = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(again, "w") as new:
        chosen = random.choice(old.namelist())
        for name in old.namelist():
            raw = old.read(name)
            new.writestr(name, mutated_bytes(random, raw[:200]) + raw[200:] if name == chosen else raw)
    return again.getvalue()

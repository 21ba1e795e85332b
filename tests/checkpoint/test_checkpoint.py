"""Checkpoints: bits come back, a kill or a full disk leaves the earlier ones whole, damage is noticed and named."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.base.safetensors import TensorWriter
from coretrain.checkpoint import manifest, translate
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import load_interchange, newest_interchange, save_interchange
from coretrain.checkpoint.manifest import (
    DamagedCheckpoint,
    Progress,
    read_sealed,
    seal,
    verify,
)
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters
from coretrain.training.restore import restore
from jaxtrain.checkpoint import export_interchange as export_jax
from jaxtrain.checkpoint import save_native
from torchtrain.checkpoint import export_interchange as export_torch

CONFIG = RunConfig(model=ModelConfig(layers=2, width=32, heads=2, vocab=300, context=16))
PROGRESS = Progress(
    update=7,
    applied=6,
    tokens=7 * 256,
    data_index=9,
    data_fingerprint="ab" * 16,
    batch_size=16,
    seed=1337,
    health={"window": [0.1 + 0.2, 1e-300, 3.0], "skipped": 1},
    loss_scale={"scale": 65536.0, "good": 12},
    best={"update": 5, "val_loss": 1 / 3},
)


def groups(dtype: type = np.float32) -> dict[str, dict[str, np.ndarray]]:
    """Parameters and moments whose every bit matters: the second moment is tiny and denormal in places."""
    start = {name: value.astype(dtype) for name, value in initial_parameters(CONFIG.model, 3).items()}
    moments = {name: np.square(value) * dtype(1e-36) for name, value in start.items()}
    return {"parameters": start, "first_moment": {n: -v / 3 for n, v in start.items()}, "second_moment": moments}


def native(folder: CheckpointFolder, update: int, content: bytes = b"state") -> Path:
    """Save what stands in for a stack's own files."""
    temporary = folder.begin(update)
    (temporary / "state").mkdir()
    (temporary / "state" / "part").write_bytes(content * 100)
    seal(temporary, replace(PROGRESS, update=update), CONFIG, "torch")
    return folder.commit(temporary, update)


def flip_bit(path: Path, where: int) -> None:
    """Damage one bit."""
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1
    path.write_bytes(raw)


def updates(folder: CheckpointFolder) -> list[str]:
    """Names of the checkpoints that count."""
    return [path.name for path in folder.complete()]


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
    with pytest.raises(UserError, match="home exists and is no checkpoint"):
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


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = native(CheckpointFolder(tmp_path), 1)
    draw = np.random.default_rng(0)
    for file in (path / "manifest.json", path / "state" / "part"):
        whole = file.read_bytes()
        for where in draw.integers(0, len(whole), 60):
            flip_bit(file, int(where))
            with pytest.raises(UserError):
                verify(path)
            file.write_bytes(whole)
    verify(path)


def test_a_newer_format_is_refused_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "FORMAT_VERSION", 2)
        native(folder, 2)
    with pytest.raises(UserError, match="format version 2, newer than this twintrain's 1") as caught:
        folder.first_that_loads(lambda path, progress: path, print)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_native_checkpoints_are_no_interchange(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="native torch checkpoint"):
        load_interchange(native(CheckpointFolder(tmp_path), 1))


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.complete() == []
    for update in (100, 200, 300, 400):
        native(folder, update)
        if update == 200:
            folder.note_best(200, 2.5)
        folder.prune(2)
    assert updates(folder) == ["update-00000400", "update-00000300", "update-00000200"]
    assert folder.best() == folder.final(200)
    folder.note_best(400, 2.0)
    folder.prune(2)
    assert updates(folder) == ["update-00000400", "update-00000300"]
    assert {path.name for path in folder.path.iterdir()} == {"update-00000400", "update-00000300", "best.json"}
    (folder.path / "best.json").write_text("{")
    assert folder.best() is None


def test_saving_the_same_update_again_replaces_it(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 100)
    native(folder, 100, b"again")
    assert updates(folder) == ["update-00000100"]
    assert (folder.final(100) / "state" / "part").read_bytes().startswith(b"again")


def test_a_replacement_cut_short_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 100)
    rename = Path.rename

    def cut(path: Path, target: Path) -> Path:
        if path.name.startswith(".tmp-update"):
            raise OSError(errno.EIO, "cut short")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut)
        with pytest.raises(OSError, match="cut short"):
            native(folder, 100, b"again")
    assert updates(folder) == ["update-00000100.old"]
    assert folder.first_that_loads(lambda path, progress: progress.update, print)[1] == 100
    native(folder, 100, b"again")
    assert updates(folder) == ["update-00000100"]


def test_fallback_names_the_damaged_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for update in (100, 200, 300):
        native(folder, update)
    flip_bit(folder.final(300) / "state" / "part", 10)
    (folder.final(200) / "manifest.json").write_text("{}")
    said: list[str] = []
    path, update = folder.first_that_loads(lambda path, progress: progress.update, said.append)
    assert (path, update) == (folder.final(100), 100)
    assert len(said) == 2
    assert "update-00000300" in said[0]
    assert "SHA-256" in said[0]
    (folder.final(100) / "state" / "part").unlink()
    with pytest.raises(UserError, match="no usable checkpoint"):
        folder.first_that_loads(lambda path, progress: progress.update, said.append)


def test_the_best_one_is_passed_over_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For text and for adapters beside others; and the damage isn't sealed anew in the interchange form."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for update in (100, 200, 300):
        native(folder, update)
    folder.note_best(100, 2.5)
    stack = SimpleNamespace(name="torch", load=lambda path, applied: loaded.append((path.name, applied)))
    loaded: list[tuple[str, int | None]] = []
    said: list[str] = []
    monkeypatch.setattr(translate, "translate", lambda stack, folder, name: loaded.append((name, None)))
    monkeypatch.setattr(translate, "load_interchange", lambda path: path.name)
    restore(stack, tmp_path, said.append, for_text=True)
    assert translate.best_interchange(tmp_path, said.append) == "update-00000100"
    assert (loaded, said) == ([("update-00000100", None)] * 2, [])
    flip_bit(folder.final(100) / "state" / "part", 10)
    restore(stack, tmp_path, said.append, for_text=True)
    assert translate.best_interchange(tmp_path, said.append) == "update-00000300"
    assert loaded[2:] == [("update-00000300", None)] * 2
    assert ["SHA-256" in text for text in said] == [True, True]
    for export in (export_torch, export_jax):
        with pytest.raises(DamagedCheckpoint, match="SHA-256"):
            export(tmp_path, "update-00000100")


def test_a_loaders_own_error_is_not_damage(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 100)
    native(folder, 200)

    def loader(path: Path, progress: Progress) -> None:
        raise UserError("another model")

    with pytest.raises(UserError, match="another model"):
        folder.first_that_loads(loader, print)


FILL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.checkpoint.test_checkpoint import CONFIG, PROGRESS, groups
from coretrain.checkpoint.interchange import save_interchange
from coretrain.base.errors import exits_cleanly
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    save_interchange(Path(sys.argv[1]), CONFIG, groups(), PROGRESS, "torch")
except OSError as error:
    print(error.errno)
"""


def test_a_write_cut_off_by_the_system_leaves_nothing(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", FILL, str(tmp_path / "i"), root]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert result.stdout.strip() == str(errno.EFBIG), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_the_same_error_in_jax(tmp_path: Path) -> None:
    """tensorstore has a ValueError of many words for it, which would be a traceback."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {"parameters": {"x": jax.random.normal(jax.random.key(0), (100, 100))}}
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_native(tmp_path, state).result()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "i"
    save_interchange(target, CONFIG, groups(), PROGRESS, "torch")
    real = TensorWriter.add

    def full(self: TensorWriter, name: str, value: np.ndarray) -> None:
        if self.filled > 20_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        real(self, name, value)

    monkeypatch.setattr(TensorWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        save_interchange(target, CONFIG, groups(), replace(PROGRESS, update=8), "torch")
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    assert load_interchange(target).progress == PROGRESS


def test_a_full_disk_while_sealing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 100)
    temporary = folder.begin(200)
    (temporary / "state.pt").write_bytes(b"x")

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifest, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        seal(temporary, PROGRESS, CONFIG, "torch")
    assert updates(folder) == ["update-00000100"]
    folder.abandon(temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000100"]


SAVE_FOREVER = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.checkpoint.test_checkpoint import CONFIG, PROGRESS, groups
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import save_interchange
saved = groups()
folder = CheckpointFolder(Path(sys.argv[1]))
for update in range(1, 100_000):
    save_interchange(folder.final(update), CONFIG, saved, replace(PROGRESS, update=update), "torch", 20_000)
    folder.prune(2)
    if update == 3:
        print("ready", flush=True)
"""


def test_killed_at_any_moment_the_newest_complete_one_is_whole(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    draw = np.random.default_rng(1)
    for trial in range(4):
        place = tmp_path / str(trial)
        command = [sys.executable, "-c", SAVE_FOREVER, str(place), root]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(draw.uniform(0, 0.2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = CheckpointFolder(place)
        said: list[str] = []
        path, loaded = folder.first_that_loads(lambda path, progress: load_interchange(path), said.append)
        assert said == []
        assert path == folder.final(loaded.progress.update)
        for name, value in groups()["parameters"].items():
            assert loaded.groups["parameters"][name].tobytes() == value.tobytes()
        folder.begin(99_999).rmdir()
        assert not list(place.glob(".tmp-*")), "the next save removes what the killed one left"


def test_newest_interchange_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no interchange checkpoint"):
        newest_interchange(tmp_path)
    for update in (5, 20):
        save_interchange(tmp_path / "interchange" / f"update-{update:08d}", CONFIG, groups(), PROGRESS, "torch")
    newest = tmp_path / "interchange" / "update-00000020"
    assert newest_interchange(tmp_path) == newest
    assert newest_interchange(newest) == newest


def test_write_atomically_takes_text(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps({"ü": 1}))
    write_atomically(tmp_path / "a.json", '{"ü": 2}')
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

"""A folder of checkpoints: which ones stay, which one is loaded, and that damage is noticed and named."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.checkpoint import manifest
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import DamagedCheckpoint, Progress, seal, verify
from coretrain.runs import translate
from coretrain.training import restore
from jaxtrain.checkpoint import export_interchange as export_jax
from jaxtrain.checkpoint import load_native, save_native
from tests.support.checkpoints import CONFIG, PROGRESS, native, updates
from tests.support.files import flip_bit
from tests.support.refusal import refused
from torchtrain.checkpoint import export_interchange as export_torch


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
    with refused("checkpoint/format-too-new") as caught:
        folder.first_that_loads(lambda path, progress: path, print)
    assert not isinstance(caught.value, DamagedCheckpoint)


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
    with refused("checkpoint/no-usable-checkpoint"):
        folder.first_that_loads(lambda path, progress: progress.update, said.append)


def test_one_that_is_saved_while_others_are_listed_takes_none_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    for update in (100, 200):
        native(folder, update)
    listed, times = folder.found(), []
    monkeypatch.setattr(
        CheckpointFolder, "found", lambda self: times.append(1) or (listed[1:] if len(times) == 1 else listed)
    )
    path, _ = folder.first_that_loads(lambda path, progress: progress.update, print, best_first=True)
    assert path == folder.final(100)


def test_the_best_one_is_passed_over_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For text and for adapters beside others; and the damage isn't sealed anew in the interchange form."""
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for update in (100, 200, 300):
        native(folder, update)
    folder.note_best(100, 2.5)
    stack = SimpleNamespace(name="torch", load=lambda path, applied: loaded.append((path.name, applied)))
    loaded: list[tuple[str, int | None]] = []
    said: list[str] = []
    for module in (restore, translate):
        monkeypatch.setattr(module, "translate", lambda stack, folder, name: loaded.append((name, None)))
    monkeypatch.setattr(translate, "load_interchange", lambda path: path.name)
    restore.restore(stack, tmp_path, said.append, for_text=True)
    assert translate.best_interchange(tmp_path, said.append) == "update-00000100"
    assert (loaded, said) == ([("update-00000100", None)] * 2, [])
    flip_bit(folder.final(100) / "state" / "part", 10)
    restore.restore(stack, tmp_path, said.append, for_text=True)
    assert translate.best_interchange(tmp_path, said.append) == "update-00000300"
    assert loaded[2:] == [("update-00000300", None)] * 2
    assert ["SHA-256" in text for text in said] == [True, True]
    for export in (export_torch, export_jax):
        with refused("checkpoint/file-checksum-wrong"):
            export(tmp_path, "update-00000100")


def test_a_damaged_manifest_of_the_best_one_is_said(tmp_path: Path) -> None:
    """The one before it names itself as the best that far, and would be taken without a word."""
    folder, said = CheckpointFolder(tmp_path), list[str]()
    for update in (100, 200):
        temporary = folder.begin(update)
        seal(temporary, replace(PROGRESS, update=update, best={"update": update, "val_loss": 1.0}), CONFIG, "torch")
        folder.commit(temporary, update)
        folder.note_best(update, 1.0)

    def taken() -> str:
        return folder.first_that_loads(lambda path, progress: path.name, said.append, best_first=True)[1]

    assert (taken(), said) == ("update-00000200", [])
    (folder.path / "best.json").unlink()  # the manifest names it too
    assert (taken(), said) == ("update-00000200", [])
    (folder.final(200) / "manifest.json").write_text("{}")
    assert taken() == "update-00000100"
    assert [text.split(":")[0] for text in said] == ["skipping checkpoint update-00000200"]


def test_a_loaders_own_error_is_not_damage(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    native(folder, 100)
    native(folder, 200)

    def loader(path: Path, progress: Progress) -> None:
        raise UserError("checkpoint/another-model", "another model")

    with pytest.raises(UserError, match="another model"):
        folder.first_that_loads(loader, print)


@pytest.mark.parametrize("name", ["[a]", "b*?c", "50%20 'd\" \n\u00fc", "-e"])
def test_any_name_of_a_folder_holds_checkpoints_of_jax(tmp_path: Path, name: str) -> None:
    """Orbax takes some of these for patterns, and then doesn't find again what it wrote."""
    folder = tmp_path / name
    folder.mkdir()
    state = {"parameters": {"x": jax.numpy.arange(6.0).reshape(2, 3)}}
    save_native(folder, state).result()
    assert [path.name for path in folder.iterdir()] == ["state"]
    loaded = load_native(folder, state, 2)
    assert loaded["parameters"]["x"].tolist() == state["parameters"]["x"].tolist()

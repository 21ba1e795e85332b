"""A run's config.json that somebody has changed: what makes another model of it is refused, the rest is said."""

from __future__ import annotations

import json

import pytest

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import seal
from coretrain.runs.convert import export_run
from coretrain.runs.folder import change_told, changed_since, open_run
from coretrain.training.command_line import parse
from tests.support.checkpoints import CONFIG, PROGRESS, groups, native, updates
from tests.support.refusal import refused


@pytest.fixture
def run(tmp_path):
    """A run's folder with two checkpoints and the interchange form of the newer one."""
    folder = tmp_path / "run"
    for update in (3, 7):
        native(CheckpointFolder(folder / "checkpoints"), update)
    save_interchange(interchange_of(folder, "update-00000007"), CONFIG, groups(), PROGRESS, "torch")
    (folder / "config.json").write_text(CONFIG.to_json())
    return folder


def edit(folder, field, value):
    """Change a field of config.json, as an editor would."""
    path, (section, leaf) = folder / "config.json", field.split(".")
    raw = json.loads(path.read_text())
    raw[section][leaf] = value
    path.write_text(json.dumps(raw))


def resumed(folder, *words):
    return parse(["--resume", str(folder), *words], "run", "").config


@pytest.mark.parametrize(
    ("field", "value", "was"),
    [
        ("model.norm_eps", 0.01, "1e-05"),
        ("model.rope_theta", 1234.0, "10000.0"),
        ("model.heads", 4, "2"),
        ("data.chat_date", "2025-01-02", "2024-07-26"),
        ("data.validation_fraction", 0.3, "0.02"),
        ("adapter.rank", 3, "8"),
    ],
)
def test_another_model_or_text_is_refused_by_name(run, tmp_path, field, value, was):
    edit(run, field, value)
    attempts = (
        lambda: open_run(run),
        lambda: resumed(run),
        lambda: export_run(run, tmp_path / "hf", "hf"),
        lambda: export_run(run, tmp_path / "same", "interchange"),
    )
    for attempt in attempts:
        with refused("runs/config-not-as-trained", field, str(value), was, "config.json", "update-00000007"):
            attempt()
    assert not (tmp_path / "hf").exists()
    assert not (tmp_path / "same").exists()


def test_what_a_resume_may_change_is_said(run):
    assert changed_since(run, open_run(run)) == {}
    edit(run, "optimizer.lr", 0.5)
    edit(run, "train.updates", 900)
    assert changed_since(run, resumed(run)) == {"optimizer.lr": (0.5, 1e-3), "train.updates": (900, 600)}
    words = change_told(changed_since(run, resumed(run, "--optimizer.lr=0.25")))
    assert [part for part in ("0.25", "0.001", "train.updates = 900", "600") if part not in words] == []


def test_files_may_have_moved(run):
    """What is in them has a fingerprint, which a resume compares."""
    for field, value in (("data.source", "/moved"), ("data.tokenizer", "/moved/tokenizer.json"), ("data.cache", "/c")):
        edit(run, field, value)
    assert open_run(run).data.source == "/moved"
    assert changed_since(run, open_run(run)) == {"data.cache": ("/c", CONFIG.data.cache)}


def test_imported_weights_have_seen_no_data(run, tmp_path):
    """Any data may still be theirs; they are of one model all the same."""
    folder = tmp_path / "imported"
    fresh = CheckpointFolder(folder / "interchange")
    temporary = fresh.begin(0)
    seal(temporary, type(PROGRESS)(), CONFIG, "import")
    fresh.commit(temporary, 0)
    (folder / "config.json").write_text(CONFIG.to_json())
    edit(folder, "data.validation_fraction", 0.3)
    assert resumed(folder).data.validation_fraction == 0.3
    edit(folder, "model.norm_eps", 0.01)
    with refused("runs/config-not-as-trained", "model.norm_eps"):
        resumed(folder)


def test_the_newest_manifest_that_is_whole_says_it(run):
    newest = run / "checkpoints" / "update-00000007" / "manifest.json"
    newest.write_text(newest.read_text().replace("0.02", "0.03"))
    edit(run, "model.norm_eps", 0.01)
    with refused("runs/config-not-as-trained", "update-00000003"):
        open_run(run)
    (run / "config.json").write_text("{")
    with refused("runs/config-damaged", "update-00000003", "manifest.json"):
        open_run(run)


def test_optimizers_that_keep_other_moments_are_told_apart_by_the_checkpoint(run):
    edit(run, "optimizer.name", "muon")
    with refused("runs/optimizer-moments-differ", "muon", "adamw"):
        resumed(run)


def test_a_checkpoint_that_lost_its_manifest_is_no_absent_one(run, capsys):
    """A run without any would begin anew, over the old one's figures."""
    kept = CheckpointFolder(run / "checkpoints")
    (kept.final(7) / "manifest.json").unlink()
    assert updates(kept) == ["update-00000003"]
    assert kept.first_that_loads(lambda path, progress: path.name, print)[1] == "update-00000003"
    assert "skipping checkpoint update-00000007" in capsys.readouterr().out
    (kept.final(3) / "manifest.json").unlink()
    with refused("checkpoint/no-usable-checkpoint"):
        kept.first_that_loads(lambda path, progress: path.name, print)
    (interchange_of(run, "update-00000007") / "manifest.json").unlink()
    with refused("checkpoint/manifest-missing", "update-00000007"):
        export_run(run, run / "hf", "hf")

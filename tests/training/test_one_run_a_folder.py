"""A run's folder belongs to one process at a time, and a new run never writes into another's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from coretrain.training.command_line import parse
from coretrain.training.resolve import run_folder
from coretrain.training.runner import hold_run, run
from tests.support.holding import busy
from tests.support.refusal import refused


def never(*_):
    pytest.fail("a stack was made")


@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_the_second_to_go_on_with_a_run_is_refused_before_it_does_anything(small_config, tmp_path, stack):
    (tmp_path / "config.json").write_text(small_config().to_json())
    before = (tmp_path / "config.json").stat().st_mtime_ns
    with busy(tmp_path) as process, refused("base/folder-in-use", str(tmp_path), f"process {process.pid} "):
        run(["--resume", str(tmp_path)], stack, never)
    assert (tmp_path / "config.json").stat().st_mtime_ns == before
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "config.json"}


def test_two_new_runs_never_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("coretrain.training.resolve.time.strftime", lambda form: "now")  # both begin in one second
    unnamed, named = parse([], "", ""), parse(["--output", "out"], "", "")

    def begin(command, folder: Path) -> str:
        with contextlib.ExitStack() as hold:
            return str(hold_run(command, folder, hold, pytest.fail))

    first = run_folder(unnamed)
    first.mkdir(parents=True)
    Path("out").mkdir()
    with busy(first), busy(Path("out")):
        assert begin(unnamed, first) == f"{first}-2"
        with refused("base/folder-in-use", "out"):
            begin(named, Path("out"))
    assert begin(unnamed, first) == str(first)
    for folder in (first, Path("out")):
        (folder / "config.json").write_text("{}")  # it began, and has ended since
    assert begin(unnamed, first) == f"{first}-3"
    with refused("training/output-holds-run", "out"):
        begin(named, Path("out"))

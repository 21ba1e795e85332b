"""Files and folders are written whole or not at all; paths are taken as they are typed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coretrain.base.files import folder_beside, put_in_place, typed_path, write_atomically
from tests.support.commands import environment
from tests.support.refusal import refused


def test_write_atomically_takes_text(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", json.dumps({"ü": 1}))
    write_atomically(tmp_path / "a.json", '{"ü": 2}')
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"ü": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("place", ["nothing", "an empty folder", "a link to one"])
def test_a_folder_takes_its_name_when_it_is_finished(tmp_path: Path, place: str) -> None:
    target = tmp_path / "new"
    if place == "an empty folder":
        target.mkdir()
    elif place == "a link to one":
        (tmp_path / "elsewhere").mkdir()
        target.symlink_to("elsewhere")
    before = {path.name for path in tmp_path.iterdir()}

    def fail() -> None:
        with folder_beside(target) as temporary:
            (temporary / "half").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {path.name for path in tmp_path.iterdir()} == before
    with folder_beside(target) as temporary:
        (temporary / "whole").write_text("x")
        put_in_place(temporary, target)
    assert {path.name for path in tmp_path.iterdir()} == before | {"new"}
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_a_killed_process_left_goes_and_two_at_once_do_not_mix(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-new"
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "half").write_text("x")
    with folder_beside(tmp_path / "new") as temporary:
        assert list(temporary.iterdir()) == []
        (temporary / "mine").write_text("x")
        with refused("base/target-being-written", str(tmp_path / "new")), folder_beside(tmp_path / "new"):
            pass
        assert [path.name for path in temporary.iterdir()] == ["mine"]
        put_in_place(temporary, tmp_path / "new")
        with folder_beside(tmp_path / "new") as again:  # the name is free before the first has quite ended
            (again / "other").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {"new"}


TERMINATED = """
import sys, time
from pathlib import Path
from coretrain.base.files import folder_beside
with folder_beside(Path(sys.argv[1])) as temporary:
    (temporary / "half").write_text("x")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TERMINATED, str(tmp_path / "new")]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment())
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    assert list(tmp_path.iterdir()) == []


def test_paths_are_taken_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert typed_path("~/a") == Path("/somewhere/a")
    for text in ("[a]*?", "%41 'b'\n", "ü", "../a/~b"):
        assert str(typed_path(text)) == text
    with refused("base/home-folder-unknown", "~nobody-of-this-name"):
        typed_path("~nobody-of-this-name/a")
    with refused("base/path-not-utf-8"):
        typed_path("caf\udce9")
    with refused("base/path-not-utf-8"):
        typed_path("a\0b")

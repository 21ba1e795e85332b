"""Checksums beside an export: as sha256sum has them, and held against the files on the way in."""

from __future__ import annotations

import subprocess

import pytest

from coretrain.formats.checksums import check_sums, write_sums
from coretrain.runs.convert import import_run
from tests.support.files import flip_bit
from tests.support.refusal import refused


@pytest.fixture
def export(tmp_path):
    """A folder of three files, one of which anybody may change."""
    folder = tmp_path / "hf"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / name).write_text(name)
    write_sums(folder, free=("README.md",))
    return folder


def test_sha256sum_takes_them(export):
    check_sums(export)
    subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=export, check=True, capture_output=True)


def test_what_was_changed_is_refused_by_name(export):
    (export / "README.md").write_text("mine")
    (export / "another.txt").write_text("mine too")
    check_sums(export)
    flip_bit(export / "model.safetensors", 3)
    for attempt in (lambda: check_sums(export), lambda: import_run(export, export.parent / "run")):
        with refused("formats/file-not-as-exported", "model.safetensors", "SHA256SUMS"):
            attempt()
    assert not (export.parent / "run").exists()
    (export / "config.json").unlink()
    with refused("formats/file-not-as-exported", "config.json"):
        check_sums(export)
    (export / "SHA256SUMS").unlink()
    check_sums(export)


def test_lists_of_others_count_too(export):
    """Of files that weren't downloaded, and in the other forms that sha256sum writes and takes."""
    sums = (export / "SHA256SUMS").read_text()
    (export / "SHA256SUMS").write_text(sums.replace("  ", " *", 1).replace("  ", "  ./") + f"{'a' * 64}  model.bin\n")
    subprocess.run(["sha256sum", "-c", "--ignore-missing", "SHA256SUMS"], cwd=export, check=True, capture_output=True)
    check_sums(export)
    flip_bit(export / "model.safetensors", 3)
    with refused("formats/file-not-as-exported", "model.safetensors"):
        check_sums(export)


@pytest.mark.parametrize("line", ["", "7", "\0" * 70, f"{'a' * 64}  ../config.json", f"{'a' * 63}  config.json"])
def test_checksums_that_are_none_are_refused(export, line):
    (export / "SHA256SUMS").write_text(line + "\n")
    with refused("formats/checksums-damaged", "SHA256SUMS"):
        check_sums(export)


def test_a_file_has_them_beside_it(tmp_path):
    model = tmp_path / "model.gguf"
    model.write_text("x")
    write_sums(model)
    assert (tmp_path / "model.gguf.sha256").read_text().endswith("  model.gguf\n")
    model.write_text("y")
    with refused("formats/file-not-as-exported", "model.gguf.sha256"):
        import_run(model, tmp_path / "run")

"""The command that prepares data: what it says, and its mistakes in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import script

pytestmark = pytest.mark.whole


def test_the_command_line(tmp_path: Path, corpus: Path) -> None:
    places = ["--data.source", corpus, "--data.cache", tmp_path / "cache"]
    run = script("prepare", *places, "--data.tokenizer=bytes", "--model.context", "32")
    assert run.returncode == 0, run.stderr
    assert "fingerprint" in run.stdout
    assert "manifest.json" in run.stdout
    assert run.stderr == ""
    for arguments in (["--data.sauce", "x"], ["stray", "x"], ["--data.source"], ["--data.source", "/nowhere"]):
        run = script("prepare", *arguments)
        assert run.returncode == 2
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1

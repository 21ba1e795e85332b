"""scripts/docstrings.py: which docstrings become rows, and that they are the same each time."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from tests.support.commands import ROOT

SCRIPT = ROOT / "scripts" / "docstrings.py"
SOURCE = '''
raise SystemExit("sources are parsed, never run")

class Shelf(list, metaclass=type):
    """Keep things
    in their order.

    More of it.
    """

    async def add(self, thing: int, *, at=-1) -> None:
        """Put a thing on the shelf, at its end by default."""

    def short(self):
        """Too short."""

    def table(self):
        """name -> value of all that there is on the shelf."""

    def unfinished(self):
        """No sentence, as there is no full stop at its end"""

    def bare(self):
        pass

def add_again(shelf):
    """Put a thing on the shelf, at its end by default."""
'''


def test_what_becomes_a_row(tmp_path):
    script = importlib.import_module("twintrain.docstrings")
    (tmp_path / "test").mkdir()
    (tmp_path / "a.py").write_text(SOURCE)
    (tmp_path / "b.py").write_text(SOURCE.replace("def add_again", "def same_answer"))
    (tmp_path / "test" / "c.py").write_text(SOURCE.replace("Keep things", "Keep tests"))
    (tmp_path / "damaged.py").write_text("def (:")
    assert list(script.rows(tmp_path)) == [
        {"prompt": "class Shelf(list, metaclass=type)", "completion": "Keep things in their order."},
        {
            "prompt": "async def add(self, thing: int, *, at=-1) -> None",
            "completion": "Put a thing on the shelf, at its end by default.",
        },
    ]


@pytest.mark.whole
def test_the_standard_library(tmp_path):
    def call(*words):
        return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True)

    done = call(tmp_path / "out.jsonl", "--limit", "300")
    assert done.returncode == 0, done.stderr
    assert "300 docstrings of Python" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len({row["completion"] for row in rows}) == len(rows) == 300
    assert {key for row in rows for key in row} == {"prompt", "completion"}
    assert all(row["prompt"].startswith(("def ", "async def ", "class ")) for row in rows)
    assert call(tmp_path / "twice.jsonl", "--limit", "300").returncode == 0
    assert (tmp_path / "twice.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    again = call(tmp_path / "out.jsonl")
    assert (again.returncode, "exists: choose another name" in again.stderr) == (2, True)
    assert call(tmp_path / "x.jsonl", "--limit", "0").returncode == 2

"""Preparing that was killed or interrupted goes on with what was finished, and ends with the same data."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coretrain.data import prepare as prepare_module
from coretrain.data.shards import HEADER
from tests.support.commands import ROOT, environment
from tests.support.corpora import configure, make_texts, quiet, tokens_of
from tests.support.files import flip_bit

PREPARE = """
import sys
from coretrain.config.load import config_from_json
from coretrain.data.open import open_data
if __name__ == "__main__":
    open_data(config_from_json(sys.stdin.read()))
"""


@pytest.mark.whole
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_prepare_leaves_nothing_half_made_and_goes_on(tmp_path: Path, processes: int) -> None:
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in make_texts(6000, size=900)))
    program = tmp_path / "program.py"
    program.write_text(PREPARE)
    extra = {"data.shard_tokens": 16_384}
    config = configure(tmp_path, tmp_path / "corpus.jsonl", **extra, **{"data.prepare_processes": processes})
    child = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    child.stdin.write(config.to_json().encode())
    child.stdin.close()
    cache = tmp_path / "cache"
    deadline = time.monotonic() + 20
    while len(list(cache.glob("*/train-*.bin"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in cache.glob("*/train-*.bin")}
    assert len(finished) >= 5
    assert not list(cache.glob("*/manifest.json"))
    noted = len(next(cache.glob("*/progress.jsonl")).read_text().splitlines())
    spoiled = sorted(finished)[3]
    flip_bit(spoiled, HEADER.size + 9, 4)  # a finished shard that was damaged meanwhile is made again
    data = quiet(config)
    kept = [path for path, stamp in finished.items() if path.stat().st_mtime_ns == stamp]
    assert sorted(kept) == sorted(finished)[:3]
    assert noted >= 4
    folder = data.parts[0].folder
    assert not list(folder.glob(".tmp-*"))
    assert not (folder / "progress.jsonl").exists()
    whole = quiet(configure(tmp_path / "whole", tmp_path / "corpus.jsonl", **extra))
    assert data.fingerprint == whole.fingerprint


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> Callable[[], None]:
    plain = prepare_module.write_shard
    counter = itertools.count()

    def fails(*arguments: Any) -> str:
        if next(counter) == after:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(prepare_module, "write_shard", fails)
    return lambda: monkeypatch.setattr(prepare_module, "write_shard", plain)


def test_resuming_keeps_every_finished_shard(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path, corpus)
    undo = interrupt(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        quiet(config)
    undo()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*/*.bin")}
    assert len(finished) == 4
    data = quiet(config)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())
    assert data.fingerprint == quiet(configure(tmp_path / "whole", corpus)).fingerprint


def test_resuming_on_other_documents_starts_again(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, corpus)
    undo = interrupt(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        quiet(config)
    undo()
    first = corpus / "0000.txt"
    stamp, text = first.stat(), first.read_text()
    first.write_text(text[::-1])  # same size and time: only the documents' own hash can tell
    os.utime(first, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    data = quiet(config)
    shown = data.tokenizer.decode(tokens_of(data.train)) + data.tokenizer.decode(tokens_of(data.validation))
    assert text[::-1] in shown
    assert text not in shown
    assert data.train.documents + data.validation.documents == 120

"""Preparing a corpus: what its shards hold, and when it is prepared again."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.data.batch import Batch
from coretrain.data.open import open_data, open_folder
from tests.support.batches import same
from tests.support.corpora import configure, make_texts, quiet, tokens_of, write_texts
from tests.support.refusal import refused


def test_the_shards_hold_the_corpus(tmp_path: Path, corpus: Path) -> None:
    data = quiet(configure(tmp_path, corpus))
    found = []
    for split in (data.train, data.validation):
        assert len(split.shards) > 1 or split is data.validation
        for shard in split.shards:
            ids, start = shard.ids(), 0
            for end in shard.ends():
                assert ids[int(end) - 1] == data.tokenizer.eot
                found.append(data.tokenizer.decode(ids[start : int(end) - 1]))
                start = int(end)
            assert start == shard.tokens
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.iterdir())]
    assert sorted(found) == sorted(texts)
    assert data.train.documents + data.validation.documents == 120
    assert data.train.bytes + data.validation.bytes == sum(len(text.encode()) for text in texts)
    assert data.train.bytes_per_token == pytest.approx(data.train.bytes / len(tokens_of(data.train)), rel=1e-12)


def test_windows_cross_shards(tmp_path: Path, corpus: Path) -> None:
    data = quiet(configure(tmp_path, corpus))
    everything = tokens_of(data.train).astype(np.int32)
    for context in (1, 32, 1000, 5000):
        count = data.train.windows(context)
        assert count == (len(everything) - 1) // context
        for window in range(min(count, 300)):
            row = data.train.read(window, context)
            wanted = everything[window * context : window * context + context + 1]
            assert same(row, Batch(wanted[:-1], wanted[1:]))
        with pytest.raises(IndexError):
            data.train.read(count, context)
    again = pickle.loads(pickle.dumps(data.train))
    assert same(again.read(3, 32), data.train.read(3, 32))
    assert len(pickle.dumps(data.train)) < 20_000


def test_the_second_opening_prepares_nothing(tmp_path: Path, corpus: Path) -> None:
    lines: list[str] = []
    config = configure(tmp_path, corpus)
    first = open_data(config, lines.append)
    assert len(lines) == 1
    assert "preparing" in lines[0]
    assert open_data(config, lines.append).fingerprint == first.fingerprint
    assert len(lines) == 1
    assert open_folder(first.parts[0].folder).fingerprint == first.fingerprint
    assert {label for label, _ in first.summary()} >= {"source", "tokenizer", "train", "validation", "fingerprint"}


def test_changed_files_or_settings_prepare_again(tmp_path: Path, corpus: Path) -> None:
    first = quiet(configure(tmp_path, corpus))
    folders = {first.parts[0].folder}
    for extra in ({"data.validation_fraction": 0.2}, {"data.max_documents": 60}, {"data.shard_tokens": 4096}):
        folders.add(quiet(configure(tmp_path, corpus, **extra)).parts[0].folder)
    assert len(folders) == 4
    (corpus / "0000.txt").write_text("changed " * 50)
    changed = quiet(configure(tmp_path, corpus))
    assert changed.parts[0].folder not in folders
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_content(tmp_path: Path, corpus: Path) -> None:
    first = quiet(configure(tmp_path, corpus))
    copy = write_texts(tmp_path / "elsewhere" / "copy", [path.read_text() for path in sorted(corpus.iterdir())])
    second = quiet(configure(tmp_path / "elsewhere", copy))
    assert second.fingerprint == first.fingerprint
    assert second.parts[0].folder != first.parts[0].folder


@pytest.mark.parametrize("tokenizer", ["bytes", "trained"])
def test_the_number_of_processes_changes_nothing(tmp_path: Path, tokenizer: str) -> None:
    lines = [json.dumps({"text": text * 40}) for text in make_texts(250)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    assert sum(map(len, lines)) > 2 * 2**20  # more than one chunk, so that processes could get out of order
    extra = {"data.tokenizer": tokenizer, "data.tokenizer_vocab": 300, "data.shard_tokens": 100_000}
    found = {
        quiet(
            configure(tmp_path / str(count), tmp_path / "corpus.jsonl", **extra, **{"data.prepare_processes": count})
        ).fingerprint
        for count in (1, 2, 3)
    }
    assert len(found) == 1


@pytest.mark.parametrize(("texts", "words"), [(["same", "same"], "a single document"), (["", " \n"], "has no text")])
def test_too_small_a_corpus_is_refused(tmp_path: Path, texts: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        quiet(configure(tmp_path, write_texts(tmp_path / "a", texts)))


def test_a_context_longer_than_the_data_is_refused(tmp_path: Path, corpus: Path) -> None:
    with refused("data/context-exceeds-source", "3000000", "train"):
        quiet(configure(tmp_path, corpus, **{"model.context": 3_000_000}))
    with pytest.raises(UserError, match=r"model\.context = 8000 .* validation tokens .* data\.validation_fraction"):
        quiet(configure(tmp_path, corpus, **{"model.context": 8000}))

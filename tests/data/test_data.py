"""Sources, splits, shards, preparing, and the order of batches: what they promise, and how it is caught broken."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.base.errors import UserError
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.data import prepare as prepare_module
from coretrain.data.batches import global_batch, validation_batches, validation_bytes_per_token
from coretrain.data.open import open_data, open_folder
from coretrain.data.order import (
    batch_hash,
    parts_at,
    permute,
    rows_at,
    rows_of_update,
    whole_weights,
)
from coretrain.data.prepare import documents_of, survey
from coretrain.data.shards import HEADER, read_shard, write_shard
from coretrain.data.sources import open_source, pieces
from coretrain.data.splits import Data

ROOT = Path(__file__).resolve().parents[2]


def make_texts(count: int, seed: int = 0, size: int = 400) -> list[str]:
    words = ["def", "return", "self", "caf\u00e9", "value", "x", "\n", "\u4f60\u597d", "import", "0.5"]
    generator = random.Random(seed)
    return [
        f"{n} " + " ".join(generator.choices(words, k=generator.randint(size // 8, size // 4))) for n in range(count)
    ]


def write_corpus(folder: Path, texts: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder


def configure(tmp: Path, source: Path | str, **extra: Any) -> RunConfig:
    values = {
        "data.source": source,
        "data.tokenizer": "bytes",
        "data.cache": tmp / "cache",
        "data.shard_tokens": 2048,
        "data.validation_fraction": 0.1,
        "model.context": 32,
        "train.batch_size": 8,
        "train.updates": 50,
        "schedule.warmup_updates": 1,
        "data.prepare_processes": 1,
    } | extra
    return load_config(None, [(key, str(value)) for key, value in values.items()])


def quiet(config: RunConfig) -> Data:
    return open_data(config, lambda line: None)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", make_texts(120))


def tokens_of(split: Any) -> np.ndarray:
    return np.concatenate([shard.ids() for shard in split.shards])


# --- preparing and opening ---


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
            assert row.dtype == np.int32
            assert np.array_equal(row, everything[window * context : window * context + context + 1])
        with pytest.raises(IndexError):
            data.train.read(count, context)
    again = pickle.loads(pickle.dumps(data.train))
    assert np.array_equal(again.read(3, 32), data.train.read(3, 32))
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
    copy = write_corpus(tmp_path / "elsewhere" / "copy", [path.read_text() for path in sorted(corpus.iterdir())])
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


# --- damage ---


def shard_path(data: Data, split: str = "train") -> Path:
    path: Path = getattr(data, split).shards[0].path
    return path


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("offset", [HEADER.size + 100, -1, 40, 60, 80])
def test_a_flipped_bit_is_refused(tmp_path: Path, corpus: Path, offset: int) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    flip(path, offset)
    with pytest.raises(UserError, match=path.name):
        quiet(config)
    flip(path, offset)
    quiet(config)


@pytest.mark.parametrize("keep", [0, 100, HEADER.size, 1000, -1])
def test_a_truncated_shard_is_refused(tmp_path: Path, corpus: Path, keep: int) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=path.name):
        quiet(config)


def test_a_missing_shard_is_refused(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        quiet(config)


def test_another_tokenizers_shard_is_refused(tmp_path: Path, corpus: Path) -> None:
    path = shard_path(quiet(configure(tmp_path, corpus)))
    other = configure(tmp_path, corpus, **{"data.tokenizer": "gpt2"})
    target = shard_path(quiet(other))
    target.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=f"{target.name} was made with another tokenizer"):
        quiet(other)


def test_a_newer_shard_is_refused(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    raw = bytearray(path.read_bytes())
    raw[8] += 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"{path.name} has format version 2, newer"):
        quiet(config)


def test_a_damaged_or_newer_manifest_is_refused(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    path = quiet(config).parts[0].folder / "manifest.json"
    good = path.read_text()
    manifest = json.loads(good)
    manifest["shards"].pop()
    for bad, words in (
        (json.dumps(manifest), "damaged"),
        (good[:50], "damaged .*: delete its folder and prepare the data again"),
        ("[]", "damaged"),
        (json.dumps(json.loads(good) | {"version": 2}), "newer"),
    ):
        path.write_text(bad)
        with pytest.raises(UserError, match=rf"manifest\.json.* {words}"):
            quiet(config)


def test_ids_out_of_the_vocabulary_are_refused(tmp_path: Path, corpus: Path) -> None:
    data = quiet(configure(tmp_path, corpus))
    with pytest.raises(UserError, match=r"x\.bin has token id 257"):
        write_shard(
            tmp_path / "x.bin", data.tokenizer.fingerprint, 257, np.array([1, 257]), np.array([2]), 1, "00" * 32
        )
    assert not (tmp_path / "x.bin").exists()
    path = shard_path(data)
    raw = bytearray(path.read_bytes())
    raw[HEADER.size : HEADER.size + 2] = (999).to_bytes(2, "little")
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"{path.name} has token id 999"):
        read_shard(path, data.tokenizer.fingerprint, 257).check(hashlib.sha256(raw).hexdigest())


def test_a_large_corpus_is_hashed_again_only_when_changed(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coretrain.data import batches, shards

    monkeypatch.setattr(batches, "ALWAYS_HASHED", 0)
    config = configure(tmp_path, corpus)
    path = shard_path(quiet(config))
    hashed: list[Path] = []
    plain = shards.sha256_of
    monkeypatch.setattr(shards, "sha256_of", lambda path: hashed.append(path) or plain(path))
    quiet(config)
    assert hashed == []
    flip(path, HEADER.size + 100)
    with pytest.raises(UserError, match=path.name):
        quiet(config)
    assert hashed == [path]


# --- interrupted preparing ---

PREPARE = """
import sys
from coretrain.config.run import RunConfig
from coretrain.data.open import open_data
if __name__ == "__main__":
    open_data(config_from_json(sys.stdin.read()))
"""


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
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
    flip(spoiled, HEADER.size + 9)  # a finished shard that was damaged meanwhile is made again
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


# --- splits ---


def splits_of(folder: Path, fraction: float) -> dict[str, str]:
    source = open_source(str(folder))
    config = load_config(None, [("data.validation_fraction", str(fraction))]).data
    return {document.text: document.split for document in documents_of(source, config, survey(source, config))}


def test_a_document_keeps_its_split(tmp_path: Path) -> None:
    texts = make_texts(400)
    first = splits_of(write_corpus(tmp_path / "a", texts), 0.1)
    random.Random(1).shuffle(texts)
    assert splits_of(write_corpus(tmp_path / "b", texts), 0.1) == first
    more = splits_of(write_corpus(tmp_path / "c", texts + [f"new {n}" for n in range(100)]), 0.1)
    assert all(more[text] == split for text, split in first.items())
    assert 15 < sum(split == "validation" for split in first.values()) < 75
    wider = splits_of(tmp_path / "a", 0.3)
    assert all(wider[text] == "validation" for text, split in first.items() if split == "validation")


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_a_tiny_corpus_still_has_both_splits(tmp_path: Path, order: tuple[int, ...]) -> None:
    texts = ["one document", "two document", "three document"]
    splits = splits_of(write_corpus(tmp_path / "a", [texts[n] for n in order]), 0.0001)
    reference = splits_of(write_corpus(tmp_path / "b", texts), 0.0001)
    assert splits == reference
    assert sorted(splits.values()) == ["train", "train", "validation"]


@pytest.mark.parametrize(("texts", "words"), [(["same", "same"], "a single document"), (["", " \n"], "has no text")])
def test_too_small_a_corpus_is_refused(tmp_path: Path, texts: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        quiet(configure(tmp_path, write_corpus(tmp_path / "a", texts)))


def test_a_context_longer_than_the_data_is_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match=r"model\.context = 3000000 is longer than the \d+ train tokens"):
        quiet(configure(tmp_path, corpus, **{"model.context": 3_000_000}))
    with pytest.raises(UserError, match=r"model\.context = 8000 .* validation tokens .* data\.validation_fraction"):
        quiet(configure(tmp_path, corpus, **{"model.context": 8000}))


# --- sources ---


def texts_from(path: Path | str, field: str = "text") -> list[str]:
    return list(open_source(str(path), field).documents())


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    import zstandard

    texts = [*make_texts(20), "lines\r\nand \u2028 separators"]
    lines = "\n".join(json.dumps({"text": text, "n": 1}) for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines[:500]) + gzip.compress(lines[500:]))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.table({"n": range(len(texts)), "text": texts}), tmp_path / "a.parquet", row_group_size=7)
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        assert texts_from(tmp_path / name) == texts, name
    assert texts_from(tmp_path) == texts * 4
    mixed = tmp_path / "mixed"
    (mixed / "sub").mkdir(parents=True)
    for name in ("b.txt", "a.md", "sub/c.py", "ignored.bin", ".hidden.txt"):
        (mixed / name).write_text(name)
    assert texts_from(mixed) == ["a.md", "b.txt", "sub/c.py"]


def test_one_text_file_is_cut_into_documents(tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {n} " * 20 for n in range(400))
    (tmp_path / "book.txt").write_text(text)
    cut = texts_from(tmp_path / "book.txt")
    assert "".join(cut) == text
    assert len(cut) > 10
    assert all(len(piece) >= 4096 for piece in cut[:-1])
    for odd in ("", "x" * 20_000, "a\n" * 20_000, "\n" * 20_000, ("y" * 9000 + "\n") * 3):
        assert "".join(pieces(odd)) == odd
    assert len(list(pieces("a\n" * 20_000))) > 5


def test_the_standard_library(tmp_path: Path) -> None:
    texts = texts_from("stdlib")
    assert sum(map(len, texts)) > 5e6
    assert any("class JSONDecoder" in text for text in texts)
    assert texts == texts_from("stdlib")
    from pydoc_data.topics import topics

    assert texts[-len(topics) :] == [topics[key] for key in sorted(topics)]
    assert not any("class TestCase_" in text[:2000] for text in texts)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"caf\xe9 " * 10, r"a\.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl, line 2: no JSON"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', r"a\.jsonl, line 1: no JSON in UTF-8"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 has no field text, only body: set data\.text_field"),
        ("a.jsonl", b"[1]\n", r"line 1 has no field text"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: field text is no text"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz can't be read"),
        ("a.jsonl.zst", b"no zstd", r"a\.jsonl\.zst can't be read"),
        ("a.parquet", b"no parquet", r"a\.parquet can't be read"),
        ("a.doc", b"x", "unknown kind of file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        texts_from(tmp_path / name)


def test_missing_things_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has no field text, only body, n"):
        texts_from(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="field n is int64, no text"):
        texts_from(tmp_path / "a.parquet", "n")
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        texts_from(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.txt .* file in that folder"):
        texts_from(tmp_path / "empty")
    with pytest.raises(UserError, match="write hf:NAME"):
        texts_from("hf:")


def test_a_dataset_streams_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    texts = make_texts(30)
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": texts, "n": range(30)}), tmp_path / "set" / "train-00000-of-00001.parquet")
    assert texts_from(f"hf:{tmp_path / 'set'}") == texts
    assert texts_from(f"hf:{tmp_path / 'set'}::train") == texts
    with pytest.raises(UserError, match="has no field body, only text, n"):
        texts_from(f"hf:{tmp_path / 'set'}", "body")
    with pytest.raises(UserError, match="can't be read"):
        texts_from(f"hf:{tmp_path / 'set'}::test")
    data = quiet(configure(tmp_path, f"hf:{tmp_path / 'set'}"))
    assert data.train.documents + data.validation.documents == 30


def test_without_datasets_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'twintrain\[datasets\]'"):
        texts_from("hf:some/name")


# --- order ---


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000, 4097])
def test_an_epoch_is_a_permutation(size: int) -> None:
    shuffled = permute(np.arange(size), size, "key")
    assert sorted(shuffled) == list(range(size))
    if size >= 100:
        assert not np.array_equal(shuffled, np.arange(size))
        assert not np.array_equal(shuffled, permute(np.arange(size), size, "other"))


def test_the_permutation_looks_random() -> None:
    size = 1000
    everything = np.array([permute(np.arange(size), size, str(key)) for key in range(200)])
    bins = np.array([np.histogram(everything[:, place], 10, (0, size))[0] for place in range(0, size, 10)])
    assert ((bins - 20) ** 2 / 20).sum(1).mean() == pytest.approx(9, abs=1.5)  # chi-square, 9 degrees of freedom
    neighbours = np.diff(everything.astype(np.int64), axis=1)
    assert (neighbours == 1).mean() == pytest.approx(1 / size, rel=0.4)
    correlation = [np.corrcoef(np.arange(size), row)[0, 1] for row in everything]
    assert abs(np.mean(correlation)) < 0.01
    assert np.std(correlation) == pytest.approx(size**-0.5, rel=0.25)


def test_a_small_permutation_reaches_every_order() -> None:
    seen = {tuple(permute(np.arange(4), 4, str(key)).tolist()) for key in range(600)}
    assert len(seen) == 24


def test_large_permutations_need_no_memory() -> None:
    size = 10**12 + 39
    found = permute(np.arange(size - 1000, size), size, "key")
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < size


def test_each_epoch_has_every_window_once_in_another_order() -> None:
    rows = [window for update in range(30) for _, window in rows_of_update([50], [1.0], "f", 1, update, 5)]
    epochs = [rows[n : n + 50] for n in range(0, 150, 50)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    for other in (rows_of_update([50], [1.0], "g", 1, 0, 50), rows_of_update([50], [1.0], "f", 2, 0, 50)):
        assert other[:, 1].tolist() != epochs[0]
    assert rows_of_update([50], [1.0], "f", 1, 0, 150)[:, 1].tolist() == rows  # batch size doesn't move positions


@pytest.mark.parametrize(
    "weights", [[95, 5], [0.95, 0.05], [0.7, 0.2, 0.1], [1, 1, 1, 1], [3], [5, 1e-3], [1, 2, 4, 8]]
)
def test_mixture_shares_are_exact(weights: list[float]) -> None:
    whole = whole_weights(weights)
    period = sum(whole) // np.gcd.reduce(whole)
    count = int(period * max(1, 10_000 // period))
    parts, counts = parts_at(np.arange(count), weights)
    shares = np.bincount(parts, minlength=len(weights))
    assert shares.tolist() == [count * weight // sum(whole) for weight in whole]
    for part in range(len(weights)):
        assert counts[parts == part].tolist() == list(range(shares[part]))
    some = np.random.default_rng(0).integers(0, count, 100)  # each position on its own says the same
    alone = parts_at(some, weights)
    assert np.array_equal(alone[0], parts[some])
    assert np.array_equal(alone[1], counts[some])
    running = np.cumsum(parts[:, None] == np.arange(len(weights)), 0)
    ideal = np.arange(1, count + 1)[:, None] * np.array(whole) / sum(whole)
    assert abs(running - ideal).max() < len(weights)


def test_95_to_5_in_every_hundred_rows() -> None:
    parts, _ = parts_at(np.arange(100_000), [95, 5])
    assert (parts.reshape(-1, 100).sum(1) == 5).all()


def test_shares_stay_exact_far_out() -> None:
    far = 2**40 + np.arange(1000)
    parts, counts = parts_at(far, [0.123456789, 0.876543211])
    assert set(parts) == {0, 1}
    assert (np.diff(counts[parts == 1]) == 1).all()
    assert int(counts[parts == 0][0]) == pytest.approx(2**40 * 0.123456789, abs=2)


def test_a_mixture_repeats_its_small_part(tmp_path: Path, corpus: Path) -> None:
    small = write_corpus(tmp_path / "small", make_texts(12, seed=9))
    mixture = f'[{{source = "{corpus}", weight = 95}}, {{source = "{small}", weight = 5}}]'
    config = configure(
        tmp_path,
        "unused",
        **{"data.mixture": mixture, "data.tokenizer": "trained", "data.tokenizer_vocab": 300, "model.context": 16},
    )
    data = quiet(config)
    windows = [part.train.windows(16) for part in data.parts]
    rows = rows_at(np.arange(100 * windows[1]), windows, data.weights, data.fingerprint, 1337)
    assert np.bincount(rows[:, 0]).tolist() == [95 * windows[1], 5 * windows[1]]
    assert (np.bincount(rows[rows[:, 0] == 1, 1]) == 5).all()
    assert data.fingerprint != quiet(configure(tmp_path, corpus)).fingerprint
    first = validation_batches(data, config)
    again = validation_batches(data, config)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    batch = global_batch(data, config, 3)
    wanted = [
        data.parts[part].train.read(int(window), 16)
        for part, window in rows_of_update(windows, [95, 5], data.fingerprint, config.train.seed, 3, 8)
    ]
    assert np.array_equal(batch, wanted)


def test_global_batches_and_their_hash(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus)
    data = quiet(config)
    batch = global_batch(data, config, 7)
    assert batch.shape == (8, 33)
    assert batch.dtype == np.int32
    assert batch_hash(batch) == batch_hash(batch.astype(np.int64)) == batch_hash(np.asfortranarray(batch))
    assert len(batch_hash(batch)) == 16
    assert batch_hash(batch) != batch_hash(batch[::-1])
    assert batch_hash(batch) != batch_hash(global_batch(data, config, 8))
    epoch = [
        row.tobytes() for update in range(data.train.windows(32) // 8) for row in global_batch(data, config, update)
    ]
    assert len(set(epoch)) == len(epoch)


def test_the_order_is_pinned() -> None:
    """Logged batch hashes of earlier runs stay comparable only while this never changes."""
    assert rows_of_update([1000, 30], [95, 5], "fingerprint", 1337, 5, 8).tolist() == PINNED_ROWS
    assert batch_hash(np.arange(6).reshape(2, 3)) == PINNED_HASH


PINNED_ROWS = [[0, 792], [0, 396], [0, 531], [0, 281], [0, 232], [0, 443], [0, 126], [0, 501]]
PINNED_HASH = "8c6c7938349a7427"


def test_validation_is_the_same_first_windows(tmp_path: Path, corpus: Path) -> None:
    config = configure(tmp_path, corpus, **{"train.eval_batches": 2})
    data = quiet(config)
    batches = validation_batches(data, config)
    assert [batch.shape for batch in batches] == [(8, 33), (8, 33)]
    assert np.array_equal(np.concatenate(batches), [data.validation.read(window, 32) for window in range(16)])
    everything = configure(tmp_path, corpus, **{"train.eval_batches": 10_000})
    assert sum(map(len, validation_batches(data, everything))) == data.validation.windows(32)
    labels = np.concatenate([batch[:, 1:].ravel() for batch in batches])
    text = data.tokenizer.decode(labels[labels != data.tokenizer.eot])
    exact = len(text.encode(errors="surrogateescape"))
    assert validation_bytes_per_token(data, config) == pytest.approx(exact / len(labels), rel=0.01)
    assert validation_bytes_per_token(data, everything) == pytest.approx(data.validation.bytes_per_token, rel=0.01)


def test_the_command_line(tmp_path: Path, corpus: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "scripts/prepare.py",
            "--data.source",
            str(corpus),
            "--data.tokenizer=bytes",
            "--data.cache",
            str(tmp_path / "cache"),
            "--model.context",
            "32",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "fingerprint" in run.stdout
    assert "manifest.json" in run.stdout
    assert run.stderr == ""
    for arguments in (["--data.sauce", "x"], ["stray", "x"], ["--data.source"], ["--data.source", "/nowhere"]):
        run = subprocess.run(
            [sys.executable, "scripts/prepare.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 2
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1

"""Rows out of shards that are written here: windows at their edges, packed conversations token by token, validation
sets of mixtures, and which documents are kept for validation."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import coretrain.data.prepare
from coretrain.config.load import load_config
from coretrain.data.batch import IGNORED, Batch, batch_hash
from coretrain.data.batches import updates_of, validation_batches, validation_bytes_per_token
from coretrain.data.manifest import manifest_of
from coretrain.data.order import rows_of_update
from coretrain.data.packing import PackedSplit, pack
from coretrain.data.prepare import Writer, documents_of, prepared_folder, survey, trained_tokenizer
from coretrain.data.shards import Shard, id_dtype, read_shard, write_shard
from coretrain.data.sources import Source
from coretrain.data.splits import Data, Part, Split
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.refusal import refused

OWNER, HASH = "ab" * 32, "cd" * 32


def shard(folder: Path, number: int, documents: list[list[int]], vocab: int = 1000) -> Shard:
    path = folder / f"{number}.bin"
    ends = np.cumsum([len(document) for document in documents])
    write_shard(path, OWNER, vocab, np.concatenate(documents), ends, 7, HASH)
    return read_shard(path, OWNER, vocab)


def counting(folder: Path, *sizes: int) -> Split:
    """Ids that count up over shards of these sizes."""
    starts = np.cumsum([0, *sizes])
    shards = [shard(folder, n, [list(range(starts[n], starts[n + 1]))]) for n in range(len(sizes))]
    return Split("train", shards)


def test_the_bytes_of_a_shard(tmp_path):
    """Header of 128 bytes, ids of two bytes, zeros up to a multiple of 8, ends of eight; all little-endian."""
    found = shard(tmp_path, 0, [[1, 2, 999], [513, 4]])
    fields = (b"TWSHARD\0", 1, 2, 1000, bytes.fromhex(OWNER), 5, 2, 7, bytes.fromhex(HASH))
    header = struct.pack("<8sHHI32sQQQ32s24x", *fields)
    assert len(header) == 128
    body = bytes([1, 0, 2, 0, 0xE7, 3, 1, 2, 4, 0]) + bytes(6)
    assert found.path.read_bytes() == header + body + bytes([3, *[0] * 7, 5, *[0] * 7])
    full = shard(tmp_path, 1, [[1, 2, 3, 4]])
    assert len(full.path.read_bytes()) == 128 + 8 + 8, "no zeros where none are needed"
    wide = shard(tmp_path, 2, [[1, 70000, 3]], 70001)
    assert wide.path.read_bytes()[128:] == struct.pack("<IIIIQ", 1, 70000, 3, 0, 3)


@pytest.mark.parametrize(("vocab", "width"), [(257, 2), (65535, 2), (65536, 2), (65537, 4), (2**32, 4)])
def test_two_bytes_hold_65536_ids(vocab, width):
    assert id_dtype(vocab).itemsize == width


@pytest.mark.parametrize(
    ("tokens", "context", "count"), [(9, 4, 2), (8, 4, 1), (5, 4, 1), (4, 4, 0), (1, 4, 0), (2, 1, 1), (10, 9, 1)]
)
def test_a_window_has_one_token_more_than_its_inputs(tmp_path, tokens, context, count):
    """So that n inputs and their labels need n + 1; the last token of a window is the first of the next."""
    split = counting(tmp_path, tokens)
    assert split.windows(context) == count
    for window in range(count):
        row = split.read(window, context)
        first = window * context
        assert row.tokens.tolist() == list(range(first, first + context))
        assert row.labels.tolist() == list(range(first + 1, first + context + 1))
    with pytest.raises(IndexError):
        split.read(count, context)


def test_a_window_over_three_shards(tmp_path):
    """Labels at the edges of shards and documents are those that follow, as in one text."""
    split = counting(tmp_path, 3, 1, 2, 9)
    assert split.windows(5) == 2
    assert split.read(0, 5).labels.tolist() == [1, 2, 3, 4, 5]
    assert split.read(1, 5).tokens.tolist() == [5, 6, 7, 8, 9]
    assert split.read(0, 10).labels.tolist() == list(range(1, 11))


def test_packed_rows_by_hand(tmp_path):
    """Facts: twice the id, and 1 more for a target. Samples of 4, 3, 2 and 6 ids; of those that were dropped one has
    nothing left, and one the fact that is its reason."""
    end = [2 * 99]
    asked, answered = [20, 22], [25, 27]  # ids 10 and 11, then 12 and 13 to be learnt
    documents = [
        [*asked, *answered, *end],
        end,
        [4, *end],
        [30, 33, 34, *end],  # 15, then 16 learnt, then 17
        [40, 43, *end],
        [51, 53, 55, 57, 58, 61, *end],
    ]
    split = PackedSplit("train", [shard(tmp_path, 0, documents[:4]), shard(tmp_path, 1, documents[4:])], 6)
    # inputs of 3, 2, 1 and 5: the first three fill a row just so
    assert split.windows(6) == 2
    row = split.read(0, 6)
    assert row.tokens.tolist() == [10, 11, 12, 15, 16, 20]
    assert row.labels.tolist() == [IGNORED, 12, 13, 16, IGNORED, 21]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 0]
    row = split.read(1, 6)
    assert row.tokens.tolist() == [25, 26, 27, 28, 29, 0]
    assert row.labels.tolist() == [26, 27, 28, IGNORED, 30, IGNORED]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 0], "what is left of a row is a sample of its own"
    assert "4 samples, 11 tokens" in split.describe()
    reasons = "1 too long or with an answer that begins inside a token, 1 refused by the template"
    assert split.dropped() == f"; samples dropped: {reasons}"


def test_a_row_that_is_left_empty_counts_on(tmp_path):
    split = PackedSplit("train", [shard(tmp_path, 0, [[2, 5, 198]])], 5)
    row = split.read(0, 5)
    assert (row.tokens.tolist(), row.labels.tolist()) == ([1, 0, 0, 0, 0], [2, *[IGNORED] * 4])
    assert row.positions.tolist() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([6, 5, 4], [[0, 2], [1]]),  # 4 left and 5 left: the fuller one
        ([6, 6, 4, 4], [[0, 3], [1, 2]]),  # of two as full, the one that came to be so last
        ([9, 1, 1], [[0, 1], [2]]),  # a room of 1 is a room
        ([4, 4, 2, 6, 6], [[0, 1, 2], [3], [4]]),
    ],
)
def test_best_fit_by_hand(lengths, rows):
    assert pack(lengths, 10) == rows


class Counted:
    """A split of so many windows, each of them its part's and its own number."""

    def __init__(self, part: int, count: int) -> None:
        self.part, self.count, self.tokens = part, count, 0

    def windows(self, context: int) -> int:
        return self.count

    def read(self, window: int, context: int) -> Batch:
        assert 0 <= window < self.count, (self.part, window)
        return Batch(np.full(context, 1000 * self.part + window, np.int32), np.arange(context, dtype=np.int32))


def mixture(sizes: list[int], weights: list[float], **more: object) -> tuple[SimpleNamespace, object]:
    parts = [SimpleNamespace(train=Counted(n, s), validation=Counted(n, s)) for n, s in enumerate(sizes)]
    data = SimpleNamespace(
        parts=parts, weights=tuple(weights), fingerprint="ab" * 32, stages=(), validation=Counted(0, 0), **more
    )  # fmt: skip
    return data, load_config().changed(model__context=4, train__batch_size=3, train__eval_batches=3, train__seed=7)


def firsts(batches: list[Batch]) -> list[list[int]]:
    return [batch.tokens[:, 0].tolist() for batch in batches]


def test_validation_of_a_mixture_by_hand():
    """Nine rows dealt two to one, each part's from its first; a part that has no more leaves its places out."""
    data, config = mixture([50, 50], [2, 1])
    assert firsts(validation_batches(data, config)) == [[0, 1000, 1], [2, 1001, 3], [4, 1002, 5]]
    short, _ = mixture([50, 1], [2, 1])
    assert firsts(validation_batches(short, config)) == [[0, 1000, 1], [2, 3, 4], [5]]
    other, _ = mixture([3, 50], [2, 1])
    assert firsts(validation_batches(other, config)) == [[0, 1000, 1], [2, 1001, 1002]]
    none, _ = mixture([0, 0], [2, 1])
    with refused("data/context-exceeds-validation"):
        validation_batches(none, config)


def test_bits_a_byte_count_the_labels_that_are_there():
    """Ids 0 to 3 stand for 5, 7, 11 and 13 bytes; a label that is no target stands for nothing."""
    tokenizer = SimpleNamespace(byte_lengths=lambda: np.array([5, 7, 11, 13]))
    data, config = mixture([1], [1], tokenizer=tokenizer)
    assert validation_bytes_per_token(data, config) == 9
    data.parts[0].validation.read = lambda window, context: Batch(
        np.zeros(4, np.int32), np.array([3, IGNORED, 1, IGNORED], np.int32)
    )
    assert validation_bytes_per_token(data, config) == 10


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_updates_are_shared_row_by_row(processes):
    data, config = mixture([11, 4], [2, 1])
    config = config.changed(train__batch_size=6)
    for update in (0, 5, 40):
        wanted = rows_of_update([11, 4], [2, 1], data.fingerprint, 7, update, 6)
        found = [updates_of(data, config, p, processes).batch(update).tokens[:, 0] for p in range(processes)]
        assert np.concatenate(found).tolist() == [1000 * part + window for part, window in wanted]
        assert {len(rows) for rows in found} == {6 // processes}


def test_batch_hashes_as_literals():
    """Changed only on purpose: logs of earlier runs have them."""
    batch = Batch(np.arange(6, dtype=np.int32).reshape(2, 3), np.array([[1, 2, 9], [4, 5, IGNORED]], np.int32))
    packed = Batch(batch.tokens, batch.labels, np.array([[0, 1, 0], [0, 1, 2]], np.int32))
    weighted = Batch(packed.tokens, packed.labels, packed.positions, np.full((2, 3), 0.5, np.float32))
    assert [batch_hash(one) for one in (batch, packed, weighted)] == [
        "649265c8181610be",
        "19214e9d9ceae01a",
        "82763a519cf3d66b",
    ]


def test_what_targets_weigh():
    labels = np.array([[1, IGNORED, 2, 3]], np.int32)
    weights = np.array([[0.5, 8.0, 0.25, 0.0]], np.float32)
    assert Batch(labels, labels).target_weight == 3
    assert Batch(labels, labels, None, weights).target_weight == 0.75


def source(texts: list[str], name: str = "made/up") -> Source:
    return Source(name, ("a listing",), lambda: iter(texts))


def share(text: str) -> float:
    """A text's place in [0, 1): the first 8 bytes of its BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=32).digest()[:8], "little") / 2**64


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3, 0.4999])
def test_documents_below_the_fraction_are_for_validation(fraction):
    texts = [f"document {n}" for n in range(400)]
    data = load_config().data.model_copy(update={"validation_fraction": fraction})
    found = {one.text: one.split for one in documents_of(source(texts), data, {})}
    assert found == {text: "validation" if share(text) < fraction else "train" for text in texts}
    assert [one.digest for one in documents_of(source(["a"]), data, {})] == [
        hashlib.blake2b(b"a", digest_size=32).digest()
    ]


def test_which_documents_count():
    """Not those of white space; of the others so many, and half a character is one that is replaced."""
    data = load_config().data
    texts = ["a", " \n", "", "b\ud800", "c"]
    assert [one.text for one in documents_of(source(texts), data, {})] == ["a", "b\ufffd", "c"]
    assert [one.text_bytes for one in documents_of(source(texts), data, {})] == [1, 4, 1]
    two = data.model_copy(update={"max_documents": 2})
    assert [one.text for one in documents_of(source(texts), two, {})] == ["a", "b\ufffd"]


@pytest.mark.parametrize(("sizes", "shards"), [([4, 4, 4], [2, 1]), ([8, 1], [1, 1]), ([7, 2, 7], [2, 1]), ([9], [1])])
def test_a_shard_is_full_at_its_limit(tmp_path, sizes, shards):
    """Of 8 tokens, and never within a document: one that reaches the limit ends it, one that passes it too."""
    writer = Writer("train", tmp_path, bytes_tokenizer(), 8, [])
    for size in sizes:
        writer.add(SimpleNamespace(text_bytes=size, digest=b"x"), np.arange(size))
    writer.flush()
    assert [entry["documents"] for entry in writer.finished] == shards
    assert [entry["file"] for entry in writer.finished] == [f"train-{n:05d}.bin" for n in range(len(shards))]
    assert sum(entry["tokens"] for entry in writer.finished) == sum(sizes)


def test_a_tiny_corpus_gives_up_its_lowest_or_its_highest():
    data = load_config().data
    texts = sorted((f"text {n}" for n in range(400)), key=share)
    assert share(texts[0]) < 0.02
    high = [text for text in texts if share(text) >= 0.02]
    found = survey(source(high[::-1]), data)
    assert found == {hashlib.blake2b(high[0].encode(), digest_size=32).digest(): "validation"}
    wide = data.model_copy(update={"validation_fraction": 0.4999})
    below = [t for t in texts if share(t) < 0.4999]
    assert survey(source(below), wide) == {hashlib.blake2b(below[-1].encode(), digest_size=32).digest(): "train"}
    assert survey(source(texts), data) == {}


def test_a_fingerprint_is_of_the_tokenizer_and_of_every_shard():
    def print_of(tokenizer: str, *shards: tuple[str, str]) -> str:
        entries = [
            {"file": file, "sha256": sha, "split": "train", "tokens": 1, "documents": 1, "bytes": 1}
            for file, sha in shards
        ]
        coder = SimpleNamespace(name="x", vocab=9, fingerprint=tokenizer)
        return manifest_of("source", coder, entries)["fingerprint"]

    found = print_of("tt", ("a.bin", "11"), ("b.bin", "22"))
    assert found == hashlib.sha256(b"tt\na.bin 11\nb.bin 22").hexdigest()
    others = [print_of("uu", ("a.bin", "11"), ("b.bin", "22")), print_of("tt", ("a.bin", "22"), ("b.bin", "11"))]
    assert len({found, *others}) == 3


def test_a_mixtures_fingerprint_is_of_its_parts_and_weights():
    def print_of(*parts: tuple[str, float]) -> str:
        split = Split("train", ())
        return Data(bytes_tokenizer(), tuple(Part("s", w, Path(), f, split, split) for f, w in parts)).fingerprint

    assert print_of(("aa", 3.0)) == "aa"
    assert print_of(("aa", 3.0), ("bb", 0.5)) == hashlib.sha256(b"aa 3.0\nbb 0.5").hexdigest()


def test_what_prepared_data_is_found_by(tmp_path, monkeypatch):
    """Everything that the shards depend on gives them another folder, and so for a trained tokenizer."""
    monkeypatch.setattr(coretrain.data.prepare, "_prepare", lambda *_: None)
    made: list[int] = []
    monkeypatch.setattr(
        coretrain.data.prepare, "train_tokenizer", lambda texts, vocab: made.append(vocab) or bytes_tokenizer()
    )
    data = load_config().data.model_copy(update={"cache": str(tmp_path)})

    def folder(listing: tuple = (1,), fingerprint: str = "t", **more: object) -> str:
        one = Source("corpus", listing, lambda: iter(["a", "b"]))
        coder = SimpleNamespace(name="x", fingerprint=fingerprint)
        return prepared_folder(one, coder, data.model_copy(update=more), lambda _: None).name

    def trained(listing: tuple = (1,), said: object = None, **more: object) -> int:
        one = Source("corpus", listing, lambda: iter(["a", "b"]))
        before = len(made)
        trained_tokenizer([one], data.model_copy(update=more), lambda _: None, said)
        return len(made) - before

    changes = [{"validation_fraction": 0.03}, {"max_documents": 9}, {"listing": (2,)}]
    of_shards = [*changes, {"shard_tokens": 2048}, {"fingerprint": "u"}]
    names = {folder(), *(folder(**change) for change in of_shards)}
    assert len(names) == 1 + len(of_shards)
    facts = json.dumps(["shards", 1, [1], "t", 0.02, 0, 16777216]).encode()
    assert folder() == f"corpus-{hashlib.blake2b(facts, digest_size=16).hexdigest()[:16]}"
    assert folder(tokenizer_vocab=999, workers=3, text_field="x") == folder(), "what the tokenizer and source tell"
    of_tokenizer = [{}, *changes, {"tokenizer_vocab": 999}, {"said": str}]
    assert [trained(**change) for change in of_tokenizer] == [1] * len(of_tokenizer)
    assert trained() == trained(shard_tokens=2048) == 0

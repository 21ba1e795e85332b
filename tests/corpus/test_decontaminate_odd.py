"""Odd benchmarks and indexes: taken, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from coretrain.corpus.decontaminate.index import write_index
from coretrain.corpus.decontaminate.step import Decontaminate
from coretrain.corpus.dedup.minhash import MinHash
from coretrain.corpus.dedup.near import Indexed, Near, index_part, near_duplicates
from coretrain.corpus.document import Batch, Document
from tests.support.fuzzing import as_json, ends_well, fuzzed, mutated, mutated_bytes, odd, replaced
from tests.support.near_documents import text

ROWS = [{"question": text(Random(n), 15), "choices": [{"text": text(Random(n + 9), 9), "label": n}]} for n in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Valid benchmarks, an index of them, and an index of documents."""
    place = tmp_path_factory.mktemp("benchmarks")
    raw = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (place / "a.jsonl").write_bytes(raw)
    (place / "b.jsonl.zst").write_bytes(zstandard.compress(raw))
    (place / "d.txt").write_text("\n\n".join(row["question"] for row in ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), place / "c.parquet")
    write_index([place / "a.jsonl"], place / "index")
    index_part(lambda: iter(documents()), place / "keys", place / "shingles", MinHash(bands=2))
    return place


def documents() -> list[Document]:
    """A few, that have an item of the benchmark."""
    return [Document(f"{n}", f"{row['question']} {text(Random(1), 20)}") for n, row in enumerate(ROWS)]


@fuzzed(4)
def test_benchmarks(folder, random):
    name = random.choice(["a.jsonl", "b.jsonl.zst", "c.parquet", "d.txt"])
    path = folder / name
    if name == "a.jsonl" and random.random() < 0.7:
        rows = [mutated(random, row) if random.random() < 0.5 else row for row in ROWS] + [odd(random)]
        raw = b"\n".join(as_json(row) for row in rows)
    else:
        raw = mutated_bytes(random, path.read_bytes())
    fields = random.choice([(), (), ("question",), ("choices",), ("choices.0.text", "")])
    with replaced(path, raw):
        ends_well("benchmark", lambda: write_index([path], folder / "made", fields=fields))


@fuzzed(2)
def test_indexes(folder, random):
    path = folder / "index"
    with replaced(path, mutated_bytes(random, path.read_bytes())):
        step = Decontaminate(str(path), random.choice(["cut", "drop"]))
        ends_well("index of benchmarks", lambda: step.run(Batch(documents())))


@fuzzed(2)
def test_documents_known_before(folder, tmp_path_factory, random):
    path, work = folder / random.choice(["keys", "shingles"]), tmp_path_factory.mktemp("work")
    near = Near(MinHash(bands=2), Indexed((folder / "keys",), (folder / "shingles",)))
    with replaced(path, mutated_bytes(random, path.read_bytes())):
        ends_well("index of documents", lambda: near_duplicates([lambda: iter(documents())], work, near))

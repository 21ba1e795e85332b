"""Files of arrays: the same bytes for the same arrays, and whatever is damaged is refused by name."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.corpus.dedup import lookup
from coretrain.corpus.dedup.arrays import read_arrays, write_arrays
from coretrain.corpus.dedup.bands import keys_within
from coretrain.corpus.dedup.parts import Table, content_hash, open_parts, write_keys
from coretrain.corpus.document import Document
from tests.support.refusal import refused

ARRAYS = {
    "one": np.arange(5, dtype=np.uint64),
    "none": np.zeros((0, 3), np.int64),
    "flags": np.array([[True, False]]),
    "odd": np.arange(7, dtype=np.uint8)[::2],
}


@pytest.fixture
def file(tmp_path):
    """A file of arrays."""
    write_arrays(tmp_path / "file", "a test", {"n": 3}, ARRAYS)
    return tmp_path / "file"


def test_arrays_come_back(file, tmp_path):
    found = read_arrays(file, "a test", sealed=True)
    assert found.facts == {"n": 3}
    assert set(found.arrays) == set(ARRAYS)
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    with pytest.raises(ValueError, match="read-only"):
        found["one"][0] = 1
    write_arrays(tmp_path / "again", "a test", {"n": 3}, ARRAYS)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_a_file_of_another_kind_or_a_damaged_one_is_refused(file, tmp_path):
    raw = file.read_bytes()
    with refused("corpus/arrays-other-kind", str(file), "a test", "pairs"):
        read_arrays(file, "pairs")
    with refused("corpus/arrays-unreadable", "nothing"):
        read_arrays(tmp_path / "nothing", "a test")
    file.write_bytes(raw[:-1])
    with refused("corpus/arrays-length-wrong", str(file)):
        read_arrays(file, "a test")
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    read_arrays(file, "a test")
    with refused("corpus/arrays-checksum-wrong", str(file)):
        read_arrays(file, "a test", sealed=True)
    file.write_bytes(b"NOARRAYS" + raw[8:])
    with refused("corpus/arrays-header-damaged", str(file)):
        read_arrays(file, "a test")


def test_whatever_a_header_says_ends_in_a_sentence(file):
    """150 headers with odd values, and 150 files with bytes changed: read, or refused."""
    raw, draw = file.read_bytes(), random.Random(0)
    length = int.from_bytes(raw[8:16], "little")
    odd = [None, -1, 2**70, 1.5, "x", [], {}, [["<u8", [2**62, 4], 0]], True, "<f2", {"one": ["<u8", [-1], 0]}]
    codes = []
    for number in range(300):
        if number % 2:
            changed = bytearray(raw)
            for _ in range(draw.randint(1, 3)):
                changed[draw.randrange(16 + length)] = draw.randrange(256)
        else:
            header = json.loads(raw[16 : 16 + length])
            inner = draw.choice([header, header["arrays"]])
            inner[draw.choice(list(inner))] = draw.choice(odd)
            if isinstance(header.get("arrays"), dict) and draw.random() < 0.5:
                entry = header["arrays"].get("one")
                if isinstance(entry, list) and entry:
                    entry[draw.randrange(len(entry))] = draw.choice(odd)
            changed = raw[:16] + json.dumps(header).encode().ljust(length)[:length] + raw[16 + length :]
        file.write_bytes(changed)
        try:
            read_arrays(file, "a test")
        except UserError as error:
            codes.append(error.code)
    assert len(codes) > 150
    assert all(code.startswith("corpus/arrays-") for code in codes)


def test_documents_are_who_they_were(tmp_path):
    documents = [
        Document("a", "one", {"source": "web"}),
        Document("\u4e16", "", {}),
        Document("", "caf\u00e9", {"source": "books"}),
        Document("\ud800", "three", {"source": "web"}),
    ]
    table = Table()
    table.add(documents[:1])
    table.add(documents[1:])
    keys = np.array([[9, 3, 3], [1, 2, 0]], np.uint64)
    write_keys(tmp_path / "keys", "made so", table, keys, np.array([0, 2, 3], np.uint32))
    parts = open_parts([tmp_path / "keys"], "made so", [tmp_path / "keys"])
    assert (parts.documents, parts.known) == (8, 4)
    assert [parts.id_of(number) for number in range(8)] == [one.id for one in documents] * 2
    numbers = np.array([7, 0, 2])
    source, names = parts.sources(numbers)
    assert [names[at] for at in source] == ["web", "web", "books"]
    assert names == ["books", "unknown", "web"]
    assert parts.column("bytes", numbers).tolist() == [5, 3, 5]
    for number, pair in zip(numbers.tolist(), parts.column("hash", numbers).tolist(), strict=True):
        raw = content_hash(documents[number % 4].text.encode())
        assert pair == [int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")]
    assert parts.parts[0].data["keys"].tolist() == [[3, 3, 9], [0, 1, 2]]
    assert parts.parts[0].data["rows"].tolist() == [[2, 3, 0], [3, 0, 2]]


def test_too_many_documents_are_refused(tmp_path, monkeypatch):
    from coretrain.corpus.dedup import parts as parts_module

    table = Table()
    table.add([Document("a", "b")])
    write_keys(tmp_path / "keys", "made so", table, np.zeros((1, 0), np.uint64), np.zeros(0, np.uint32))
    monkeypatch.setattr(parts_module, "MOST", 1)
    with refused("corpus/too-many-documents", "2 documents"):
        open_parts([tmp_path / "keys"] * 2, "made so")


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("bits", [8, 26])
def test_hashes_are_looked_up(count, bits, monkeypatch):
    monkeypatch.setattr(lookup, "MOST_BITS", bits)
    draw = np.random.default_rng(count)
    held = np.sort(np.concatenate([draw.integers(0, 2**64, count, dtype=np.uint64)] * 2))
    asked = np.concatenate([held[::3], draw.integers(0, 2**64, 500, dtype=np.uint64), held[-1:] + np.uint64(1)])
    where, begins, ends = lookup.Lookup(held).find(asked)
    assert where.tolist() == [at for at, value in enumerate(asked) if value in held]
    assert all((held[b:e] == asked[at]).all() and e - b == 2 for at, b, e in zip(where, begins, ends, strict=True))


@pytest.mark.parametrize("pieces", [1, 2, 3, 1000])
def test_keys_at_the_ends_of_ranges_are_in_one_each(tmp_path, pieces):
    borders = sorted({2**64 * piece // pieces + step for piece in range(pieces + 1) for step in (-1, 0)})
    keys = np.array([[key for key in borders if 0 <= key < 2**64]], np.uint64)
    table = Table()
    table.add([Document(f"{n}", "x") for n in range(keys.shape[1])])
    write_keys(tmp_path / "keys", "so", table, keys, np.arange(keys.shape[1], dtype=np.uint32))
    parts = open_parts([tmp_path / "keys"], "so")
    found = [keys_within(parts, 0, piece, pieces)[0] for piece in range(pieces)]
    assert np.concatenate(found).tolist() == keys[0].tolist()
    assert all(2**64 * piece // pieces <= int(one[0]) for piece, one in enumerate(found))
    assert all(int(one[-1]) < 2**64 * (piece + 1) // pieces for piece, one in enumerate(found))


@pytest.mark.parametrize("shape", [[5], [2**61, 8], [-4], [4.0], "4"])
def test_an_array_that_reaches_beyond_the_data_is_refused(file, shape):
    raw = file.read_bytes()
    length = int.from_bytes(raw[8:16], "little")
    header = json.loads(raw[16 : 16 + length])
    header["arrays"]["odd"][1] = shape
    text = json.dumps(header).encode()
    file.write_bytes(raw[:8] + len(text).to_bytes(8, "little") + text + raw[16 + length :])
    with refused("corpus/arrays-header-damaged", str(file)):
        read_arrays(file, "a test")

"""A state in pieces: any blocks and ranges make the tensors again, and damage is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.base.safetensors import TensorFile, TensorWriter
from coretrain.checkpoint.fragments import (
    Fragment,
    block_of,
    read_fragments,
    size_of,
    take,
    write_fragments,
)
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters, padded_vocab, parameter_table
from tests.support.refusal import refused

CONFIG = RunConfig(model=ModelConfig(layers=2, width=32, heads=4, vocab=101, context=16))
CUT = ("vocab", "heads", "kv_heads", "hidden")


def fragments(tensors, parts, index, ranges, place):
    """What one of parts x ranges owners has: a block, of which a flat range."""
    for row in parameter_table(CONFIG.model):
        rows = padded_vocab(CONFIG.model, 64) if row.axes[0] == "vocab" else row.shape[0]
        block = block_of(row, rows, dict.fromkeys(CUT, (parts, index)))
        if index and size_of(block) == row.size:
            continue
        flat, share = take(tensors[row.name], block).reshape(-1), -(-size_of(block) // ranges)
        values = flat[place * share : (place + 1) * share]
        if values.size:
            yield Fragment("parameters", row.name, row.shape, block, place * share, values)


@pytest.mark.parametrize(("parts", "ranges"), [(1, 1), (1, 3), (2, 1), (4, 3)])
def test_any_owners_make_every_bit(tmp_path, parts, ranges):
    tensors = initial_parameters(CONFIG.model, 3)
    for index in range(parts):
        for place in range(ranges):
            write_fragments(tmp_path / "s", index * ranges + place, fragments(tensors, parts, index, ranges, place))
    read = read_fragments(tmp_path / "s")
    assert list(read) == ["parameters"]
    assert read["parameters"].keys() == tensors.keys()
    for name, value in tensors.items():
        assert read["parameters"][name].tobytes() == value.tobytes(), name
        assert read["parameters"][name].dtype == value.dtype


def test_missing_and_doubled_pieces_are_named(tmp_path):
    tensors = initial_parameters(CONFIG.model, 3)
    folder = tmp_path / "s"
    for place in range(2):
        write_fragments(folder, place, fragments(tensors, 1, 0, 2, place))
    (folder / "00001.json").rename(tmp_path / "aside.json")
    with refused("checkpoint/fragments-cut-off", "embed.token", "1616"):
        read_fragments(folder)
    write_fragments(folder, 1, fragments(tensors, 1, 0, 2, 0))
    with refused("checkpoint/fragments-gap", "1616"):
        read_fragments(folder)
    write_fragments(folder, 1, fragments(tensors, 1, 0, 2, 1))
    (folder / "00001.safetensors").unlink()
    with refused("checkpoint/fragment-unreadable", "00001.safetensors"):
        read_fragments(folder)["parameters"]["embed.token"]
    (folder / "00000.json").write_text(json.dumps({}))
    with refused("checkpoint/fragments-unreadable", "00000.json"):
        read_fragments(folder)


def test_written_tensors_are_safetensors(tmp_path):
    made = {
        "a": np.arange(6, dtype=np.float64).reshape(2, 3),
        "b": np.float32([1.5]),
        "c": np.zeros((0, 2), np.float32),
    }
    with TensorWriter(tmp_path / "x.safetensors", made) as writer:
        for name, value in made.items():
            writer.add(name, value)
    import safetensors.numpy

    theirs = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    ours = TensorFile(tmp_path / "x.safetensors")
    for name, value in made.items():
        for read in (theirs[name], ours.read(name)):
            assert (read.dtype, read.shape, read.tobytes()) == (value.dtype, value.shape, value.tobytes())


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 16]},
        {"data_offsets": [8, 20]},
        {"data_offsets": [-4, 8]},
        {"data_offsets": [0, "12"]},
        {"data_offsets": [0]},
        {"shape": [3.0]},
        {"shape": [-1, -3]},
        {"shape": "3"},
        {"dtype": "F64"},
        {"dtype": ["F32"]},
        {"dtype": "F16", "shape": [2, 3, 2]},
    ],
)
def test_a_header_whose_bytes_are_not_its_shapes(tmp_path, change):
    """Numbers of one tensor would be read as another's."""
    path = tmp_path / "x.safetensors"
    facts = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    for changed in ({}, change):
        second = {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}
        header = json.dumps({"a": facts | changed, "b": second}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(20))
        if not changed:
            assert TensorFile(path).read("a").tolist() == [0, 0, 0]
    with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
        TensorFile(path)

"""A state in pieces: what each process of a run owns of each tensor, written and read without the others' topology.

Each process writes one safetensors file and an index of it. A fragment is the numbers [start, stop), in row-major
order, of a block (one slice for each dimension) of a canonical tensor. Tensor parallelism makes blocks, ZeRO flat
ranges of them. Read back, a tensor is put together from whatever fragments there are, one tensor at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from coretrain.base.arrays import Array
from coretrain.base.files import write_atomically
from coretrain.base.numbers import COUNTABLE
from coretrain.base.parse import from_json, read_bytes
from coretrain.base.safetensors import TensorWriter
from coretrain.checkpoint.manifest import DamagedCheckpoint
from coretrain.contract.parameters import Parameter

FILE = "{rank:05d}"
Edges = tuple[tuple[int, int], ...]
"""A block: start and stop along each dimension."""


@dataclass(frozen=True)
class Fragment:
    """Some of one tensor's numbers, and which they are."""

    group: str
    """`parameters`, `first_moment`, `second_moment` or `momentum`."""
    name: str
    """Canonical name of the parameter."""
    shape: tuple[int, ...]
    """Shape of the whole canonical tensor."""
    block: Edges
    """The part of it that this process's numbers come from."""
    start: int
    """Index of the first number, within the block."""
    values: Array
    """The numbers, flat."""


Index = Annotated[int, Field(ge=0, le=COUNTABLE)]


class _Row(BaseModel):
    """What the index says of a fragment."""

    key: str
    group: str
    name: str
    shape: list[Index]
    block: list[tuple[Index, Index]]
    start: Index
    stop: Index
    dtype: Literal["float64", "float32"]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        sides = zip(self.block, self.shape, strict=True)  # raises ValueError where there are more or fewer
        if not all(start <= stop <= size for (start, stop), size in sides) or self.stop > size_of(tuple(self.block)):
            raise ValueError("a fragment reaches out of its tensor")
        return self


class _Index(BaseModel):
    fragments: list[_Row]


def block_of(row: Parameter, rows: int, sharded: Mapping[str, tuple[int, int]]) -> Edges:
    """The part of a canonical tensor that one of several owners along its logical axes has.

    `sharded` gives the number of parts and the index of this one for each logical axis that is cut ("vocab", "heads");
    `rows` is the length of the first dimension with its padding, which is cut with it and belongs to no block.
    """
    block = []
    for dimension, (axis, size) in enumerate(zip(row.axes, row.shape, strict=True)):
        parts, index = sharded.get(axis, (1, 0))
        share = (rows if dimension == 0 else size) // parts
        block.append((min(index * share, size), min((index + 1) * share, size)))
    return tuple(block)


def size_of(block: Edges) -> int:
    """How many numbers a block has."""
    return math.prod(stop - start for start, stop in block)


def take(value: Array, block: Edges) -> Array:
    """A block of a whole tensor."""
    return value[tuple(slice(start, stop) for start, stop in block)]


def write_fragments(folder: Path, rank: int, fragments: Iterable[Fragment]) -> None:
    """Write one process's fragments into `folder`, synced to disk. All processes write into the same one."""
    folder.mkdir(exist_ok=True)
    named = {f"{fragment.group}/{fragment.name}@{fragment.start}": fragment for fragment in fragments}
    stem = FILE.format(rank=rank)
    with TensorWriter(folder / f"{stem}.safetensors", named.keys()) as writer:
        for key, fragment in named.items():
            writer.add(key, fragment.values)
    index = [
        {
            "key": key,
            "group": fragment.group,
            "name": fragment.name,
            "shape": list(fragment.shape),
            "block": [list(edge) for edge in fragment.block],
            "start": fragment.start,
            "stop": fragment.start + fragment.values.size,
            "dtype": str(fragment.values.dtype),
        }
        for key, fragment in named.items()
    ]
    write_atomically(folder / f"{stem}.json", json.dumps({"fragments": index}).encode())


def read_fragments(folder: Path) -> dict[str, FragmentedGroup]:
    """The state in `folder` by group; each tensor is put together when it is asked for.

    Raises `DamagedCheckpoint` where a file can't be read, or fragments don't make whole tensors.
    """
    places: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*.json")):
        file = path.with_suffix(".safetensors")
        try:
            rows = _Index.model_validate(from_json(read_bytes(path))).fragments
        except (OSError, ValueError) as error:  # pydantic's is one, of many lines
            reason = "it is no index of fragments" if isinstance(error, ValidationError) else error
            raise DamagedCheckpoint("checkpoint/fragments-unreadable", f"{path} can't be read: {reason}") from None
        try:
            most = file.stat().st_size
        except OSError as error:
            raise _unreadable(file, error) from None
        for row in rows:
            if not 0 < row.stop - row.start <= most:
                raise DamagedCheckpoint(
                    "checkpoint/fragment-size-wrong", f"{path} is damaged: {file.name} can't hold {row.key}"
                )
            places.setdefault(row.group, {}).setdefault(row.name, []).append(row.model_dump() | {"file": file})
    if "parameters" not in places:
        raise DamagedCheckpoint(
            "checkpoint/no-parameters",
            f"{folder} holds no parameters: it is no torch checkpoint, or a part of one",
        )
    for group, tensors in places.items():
        for name, pieces in tensors.items():
            _check_whole(folder, f"{group}/{name}", pieces)
    return {group: FragmentedGroup(tensors) for group, tensors in places.items()}


def _unreadable(file: Path, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint("checkpoint/fragment-unreadable", f"{file} can't be read: {error}")


def _check_whole(folder: Path, name: str, pieces: list[dict[str, Any]]) -> None:
    """Each block without gap or overlap, and the blocks together as large as the tensor, none twice."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for piece in pieces:
        blocks.setdefault(json.dumps(piece["block"]), []).append(piece)
    found = 0
    for of_block in blocks.values():
        at = 0
        for piece in sorted(of_block, key=lambda piece: (piece["start"], piece["stop"])):
            if piece["start"] != at:
                raise DamagedCheckpoint(
                    "checkpoint/fragments-gap",
                    f"{folder}: {name} has a gap or an overlap at number {at} of a block",
                )
            at = piece["stop"]
        if at != size_of(of_block[0]["block"]):
            raise DamagedCheckpoint(
                "checkpoint/fragments-cut-off", f"{folder}: {name} is cut off at number {at} of a block"
            )
        found += at
    if found != math.prod(pieces[0]["shape"]) or len({json.dumps(piece["shape"]) for piece in pieces}) > 1:
        raise DamagedCheckpoint(
            "checkpoint/fragments-incomplete",
            f"{folder}: {name} has {found} numbers of {math.prod(pieces[0]['shape'])}",
        )


class FragmentedGroup(Mapping[str, Array]):
    """One group of a state: tensors by canonical name, put together one at a time."""

    def __init__(self, places: Mapping[str, list[dict[str, Any]]]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Array:
        pieces = self._places[name]
        whole: NDArray[Any] = np.empty(pieces[0]["shape"], pieces[0]["dtype"])
        blocks: dict[str, NDArray[Any]] = {}
        for piece in pieces:
            key = json.dumps(piece["block"])
            if key not in blocks:
                shape = [stop - start for start, stop in piece["block"]]
                whole_block = math.prod(shape) == whole.size
                blocks[key] = whole.reshape(-1) if whole_block else np.empty(math.prod(shape), whole.dtype)
            try:
                with safe_open(piece["file"], framework="np") as file:
                    blocks[key][piece["start"] : piece["stop"]] = file.get_tensor(piece["key"])
            except (SafetensorError, OSError, ValueError) as error:
                raise _unreadable(piece["file"], error) from None
        for key, values in blocks.items():
            block = json.loads(key)
            if values.size != whole.size:
                take(whole, block)[...] = values.reshape([stop - start for start, stop in block])
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

"""Read a safetensors file tensor by tensor, bfloat16 included, which numpy has no dtype for; write one piece by piece.

Format: 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, the data.
Source: the format's description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.parse import from_json

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LARGEST_HEADER = 100_000_000
_PIECE = 1 << 22
"""Numbers of a tensor that are compared at a time."""


class TensorFile:
    """One safetensors file of floating-point weights."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises `UserError` naming the file when it is missing or damaged."""
        self.path = path
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = from_json(file.read(length)) if length <= LARGEST_HEADER else None
            size = path.stat().st_size - 8 - length
        except OSError as error:
            raise UserError("base/safetensors-unreadable", f"can't read {path}: {error.strerror}") from None
        except ValueError:
            header = None
        if not isinstance(header, dict):
            raise UserError("base/safetensors-header-missing", f"{path} is damaged: it has no safetensors header")
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        try:
            self.metadata = {str(key): str(value) for key, value in self.metadata.items()}
            filled = _filled(header, path)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                "base/safetensors-header-damaged", f"{path} is damaged: its safetensors header isn't one"
            ) from None
        if filled != size:
            raise UserError(
                "base/safetensors-length-wrong", f"{path} is damaged: its length is not what its header says"
            )
        self.start, self.header = 8 + length, header

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises `UserError` where it is held in a way that isn't read here."""
        facts = self.header[name]
        if facts["dtype"] not in DTYPES:
            raise UserError(
                "base/safetensors-dtype-unsupported",
                f"{self.path}: {name} is {facts['dtype']}, and {', '.join(DTYPES)} are read: write it in one of them",
            )
        return tuple(facts["shape"])

    def read(self, name: str) -> Array:
        """One tensor: float64 and float32 as they are, float16 and bfloat16 widened to float32."""
        facts, shape = self.header[name], self.shape(name)
        offset = facts["data_offsets"][0]
        raw = np.fromfile(self.path, DTYPES[facts["dtype"]], math.prod(shape), offset=self.start + offset)
        if raw.size != math.prod(shape):
            raise UserError("base/safetensors-tensor-cut-off", f"{self.path} is damaged: {name} reaches beyond its end")
        if facts["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        elif facts["dtype"] == "F16":
            raw = raw.astype(np.float32)
        value: Array = raw.reshape(shape)
        return value

    def same(self, name: str, other: TensorFile, named: str) -> bool:
        """Whether two tensors hold the same numbers; a small part of each is in memory at a time."""
        shape = self.shape(name)
        if shape != other.shape(named):
            return False
        if self.header[name]["dtype"] != other.header[named]["dtype"]:
            return np.array_equal(self.read(name), other.read(named))
        kind, size = DTYPES[self.header[name]["dtype"]], math.prod(shape)
        starts = [file.start + file.header[key]["data_offsets"][0] for file, key in ((self, name), (other, named))]
        for at in range(0, size, _PIECE):
            step = at * np.dtype(kind).itemsize
            one, two = (
                np.fromfile(path, kind, min(_PIECE, size - at), offset=start + step)
                for path, start in zip((self.path, other.path), starts, strict=True)
            )
            if not np.array_equal(one, two):
                return False
        return True


def _filled(header: Mapping[str, Any], path: Path) -> int:
    """Bytes of all tensors, one after the other as the format asks. Raises `UserError` naming one that doesn't begin
    where another ends, or has not the bytes that its shape takes."""
    filled = 0
    for (begin, end), name in sorted((tuple(facts["data_offsets"]), name) for name, facts in header.items()):
        dtype, shape = header[name]["dtype"], [operator.index(length) for length in header[name]["shape"]]
        size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize if dtype in DTYPES else end - filled
        if operator.index(begin) != filled or end != filled + size or min(size, *shape, 0) < 0:
            raise UserError(
                "base/safetensors-tensor-misplaced",
                f"{path} is damaged: {name} doesn't lie where its shape and its neighbours say",
            )
        filled = operator.index(end)
    return filled


class TensorWriter:
    """Writes one safetensors file, tensor by tensor: none is held, and the header comes last, into room left for it."""

    _FACTS = 160
    """Bytes that dtype, shape and offsets of a tensor take in the header, at most."""

    def __init__(self, path: Path, names: Collection[str], metadata: Mapping[str, str] | None = None) -> None:
        """Begin a file for some or all of `names`."""
        self.header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self.filled = 0
        """Bytes of data so far."""
        room = sum(len(json.dumps(name)) + self._FACTS for name in names) + len(json.dumps(self.header)) + 8
        self.room = room + -room % 8  # the data starts at a multiple of 8, as the format asks
        self._file = open(path, "wb")  # noqa: SIM115  # __exit__ closes it
        self._file.seek(8 + self.room)

    def add(self, name: str, value: Array) -> None:
        """Append a float64, float32 or float16 tensor. Raises OSError on a full disk."""
        dtype = {dtype.lstrip("<"): kind for kind, dtype in DTYPES.items()}[value.dtype.str[1:]]
        offsets = [self.filled, self.filled + value.nbytes]
        self.header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": offsets}
        self._file.write(np.ascontiguousarray(value).data)
        self.filled += value.nbytes

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the header and sync the file to disk; after an error it is only closed."""
        with self._file:
            if kind is None:
                text = json.dumps(self.header).encode()
                assert len(text) <= self.room
                self._file.seek(0)
                self._file.write(self.room.to_bytes(8, "little") + text.ljust(self.room))
                self._file.flush()
                os.fsync(self._file.fileno())

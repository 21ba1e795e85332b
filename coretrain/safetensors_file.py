"""Read a safetensors file tensor by tensor, bfloat16 included, which numpy has no dtype for; write one piece by piece.

Format: 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, the data.
Source: the format's description at github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coretrain.errors import UserError
from coretrain.parameters import Array

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
LARGEST_HEADER = 100_000_000


class TensorFile:
    """One safetensors file of floating-point weights."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises `UserError` naming the file when it is missing or damaged."""
        self.path = path
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if length <= LARGEST_HEADER else None
            size = path.stat().st_size - 8 - length
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror}") from None
        except ValueError:
            header = None
        if not isinstance(header, dict):
            raise UserError(f"{path} is damaged: it has no safetensors header")
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        try:
            ends = [
                facts["data_offsets"][1] for facts in header.values() if facts["dtype"] and facts["shape"] is not None
            ]
            filled = max(ends, default=0) == size
        except (KeyError, TypeError, IndexError):
            raise UserError(f"{path} is damaged: its safetensors header isn't one") from None
        if not filled:
            raise UserError(f"{path} is damaged: its length is not what its header says")
        self.start, self.header = 8 + length, header

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Raises `UserError` where it isn't of floating point."""
        facts = self.header[name]
        if facts["dtype"] not in DTYPES:
            raise UserError(f"{self.path}: {name} is {facts['dtype']}, only floating-point weights are read")
        return tuple(facts["shape"])

    def read(self, name: str) -> Array:
        """One tensor: float64 and float32 as they are, float16 and bfloat16 widened to float32."""
        facts, shape = self.header[name], self.shape(name)
        offset = facts["data_offsets"][0]
        raw = np.fromfile(self.path, DTYPES[facts["dtype"]], math.prod(shape), offset=self.start + offset)
        if raw.size != math.prod(shape):
            raise UserError(f"{self.path} is damaged: {name} reaches beyond its end")
        if facts["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        elif facts["dtype"] == "F16":
            raw = raw.astype(np.float32)
        value: Array = raw.reshape(shape)
        return value


def write_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write float64, float32 or float16 tensors, one after the other, synced to disk. Raises OSError on a full disk."""
    names = {dtype.lstrip("<"): name for name, dtype in DTYPES.items()}
    header, at = {}, 0
    for name, value in tensors.items():
        header[name] = {
            "dtype": names[value.dtype.str[1:]],
            "shape": value.shape,
            "data_offsets": [at, at + value.nbytes],
        }
        at += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8, as the format asks
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            file.write(np.ascontiguousarray(value).data)
        file.flush()
        os.fsync(file.fileno())

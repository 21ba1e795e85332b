"""Arrays in a file: .npz without pickle, whole or not at all, the same bytes for the same arrays."""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.files import write_atomically

Arrays = dict[str, NDArray[Any]]
LARGEST = 2**36
"""Bytes of one array, unpacked."""
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, EOFError, NotImplementedError, RuntimeError),
    *(OSError, OverflowError, SyntaxError, TypeError, KeyError, MemoryError),
)
"""What zipfile and numpy raise over files that aren't what they seem."""


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write them; returns the file's SHA-256."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return write_atomically(path, out.getbuffer())


def load_arrays(path: Path) -> Arrays:
    """The arrays of a file. Raises ValueError where it is damaged or of another kind, OSError where there is none."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return {one.filename.removesuffix(".npy"): _array(archive, one) for one in archive.infolist()}
        except _DAMAGED as error:
            raise ValueError(f"no arrays can be read: {error}") from None


def _array(archive: zipfile.ZipFile, one: zipfile.ZipInfo) -> NDArray[Any]:
    if one.file_size > LARGEST or one.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{one.filename} is larger than any model, or packed")
    with archive.open(one) as file:
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # reads to the end, so that its checksum is looked at
            raise ValueError(f"{one.filename} has more than an array")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{one.filename} holds no numbers")
    return array

"""GGUF, the file of llama.cpp, through the package gguf: facts and tensors out of one, and into one.

Matrices may be quantized in blocks along their last axis; they are read as float32. The format and the quantizers are
the package's own. Source: docs/gguf.md at github.com/ggml-org/ggml.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.base.files import folder_beside, sync_folder

QUANTIZATIONS = ("none", "f16", "q8_0", "q4_0")
READABLE = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""Floating-point and block forms that the package gguf 0.19 turns into float32."""


def gguf_package() -> Any:
    """The package gguf. Raises `UserError` with the line that installs it."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "formats/gguf-package-missing", "GGUF files need the package gguf: pip install -e '.[export]'"
        ) from None
    return gguf


def _reader(gguf: Any) -> Any:
    """The package's reader, which ends at the end of the file."""

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # the package is imported late, and is Any
        """It goes on with nothing there by itself: a list that says it has 2**60 numbers would be read for ever."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) != count:
                raise ValueError("it ends before what it says it holds")
            return found

    return Reader


class GGUFFile:
    """A GGUF file, its tensors still on disk; `facts` holds its metadata by key, strings and numbers and lists."""

    def __init__(self, path: Path) -> None:
        """Read facts and index. Raises `UserError` for a file that is missing, damaged, or quantized in another way."""
        gguf = gguf_package()
        self.path = path
        if not path.is_file():
            raise UserError(
                "formats/gguf-file-not-found",
                f"{path} does not exist: give a .gguf file, or the folder of a Hugging Face model",
            )
        try:
            with np.errstate(over="ignore"):  # of sizes that no file has, which is said below
                reader = _reader(gguf)(path)
            self.facts: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                "formats/gguf-file-unreadable",
                f"{path} can't be read as a GGUF file ({reason}): it is cut short, damaged, or newer than the "
                "package gguf; download it again",
            ) from None
        if reader.byte_order != "I":
            raise UserError(
                "formats/gguf-byte-order-wrong",
                f"{path} is of the other byte order: convert it with gguf-convert-endian",
            )
        if (parts := self.facts.get("split.count", 1)) not in (0, 1):
            raise UserError(
                "formats/gguf-is-split",
                f"{path} is one of {parts} parts: join them with llama-gguf-split --merge FIRST_PART WHOLE",
            )
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        for name, tensor in self._tensors.items():
            if tensor.tensor_type.name not in READABLE:
                raise UserError(
                    "formats/gguf-tensor-type-unsupported",
                    f"{path}: {name} is {tensor.tensor_type.name}, which can't be imported: {', '.join(READABLE)} can; "
                    "take another file of the same model",
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in the file's order."""
        return tuple(self._tensors)

    def kind(self, name: str) -> str:
        """How a tensor is held: `F32`, `Q4_0` and so on."""
        return str(self._tensors[name].tensor_type.name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, first axis slowest (the file names them the other way round)."""
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def raw(self, name: str) -> Array:
        """A tensor as it is held: blocks of a quantized one as uint8."""
        return np.asarray(self._tensors[name].data)

    def read(self, name: str) -> Array:
        """A tensor as float32, which is exact for F16 and BF16 and what llama.cpp computes for blocks."""
        tensor = self._tensors[name]
        value: Array = gguf_package().dequantize(tensor.data, tensor.tensor_type)
        return np.ascontiguousarray(value, np.float32).reshape(self.shape(name))

    def fact(self, key: str) -> Any:
        """A fact that must be there. Raises `UserError` naming it."""
        if key not in self.facts:
            raise UserError(
                "formats/gguf-field-missing",
                f"{self.path} lacks the field {key}: it is no whole model; download it again",
            )
        return self.facts[key]


@dataclass(frozen=True)
class GgufTensor:
    """One tensor to write: made when its turn comes, so that one is in memory at a time."""

    name: str
    shape: tuple[int, ...]
    value: Callable[[], Array]


def kind_of(piece: GgufTensor, quantization: str) -> str:
    """How llama.cpp's own quantizer would hold a tensor: norms, biases and positions in F32, the rest as asked.

    Rows that aren't whole blocks of 32 stay F16. With q4_0 the token embedding and the head are Q8_0, as their rounding
    reaches every logit.
    """
    if len(piece.shape) == 1 or piece.name == "position_embd.weight" or quantization == "none":
        return "F32"
    if quantization == "f16" or piece.shape[-1] % 32:
        return "F16"
    return "Q8_0" if piece.name in ("token_embd.weight", "output.weight") else quantization.upper()


def quantized(piece: GgufTensor, kind: str) -> Array:
    """A tensor's value in the form `kind`. Raises `UserError` where float16 can't hold it."""
    gguf = gguf_package()
    value = np.ascontiguousarray(piece.value(), np.float32)
    largest = float(np.abs(value).max(initial=0))
    if not np.isfinite(largest) or (kind == "F16" and largest >= 65520):
        raise UserError(
            "formats/gguf-value-overflow", f"{piece.name} holds {largest:g}, which {kind} can't: give --quantize none"
        )
    held: Array = gguf.quantize(value, gguf.GGMLQuantizationType[kind])
    return held


def write_gguf(
    path: Path, architecture: str, facts: Mapping[str, Any], pieces: Iterable[GgufTensor], quantization: str
) -> None:
    """Write a GGUF file, whole or not at all. Raises `UserError` where one is there already or a value doesn't fit."""
    gguf = gguf_package()
    if path.exists():
        raise UserError("formats/gguf-target-exists", f"{path} exists: choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(path) as temporary:
        writer, pieces = gguf.GGUFWriter(temporary / path.name, architecture), list(pieces)
        try:
            for key, value in facts.items():
                _add(writer, key, value)
            kinds = [kind_of(piece, quantization) for piece in pieces]
            for piece, kind in zip(pieces, kinds, strict=True):
                code = gguf.GGMLQuantizationType[kind]
                block, size = gguf.GGML_QUANT_SIZES[code]
                nbytes = int(np.prod(piece.shape)) // block * size
                writer.add_tensor_info(piece.name, piece.shape, np.dtype(np.float32), nbytes, raw_dtype=code)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for piece, kind in zip(pieces, kinds, strict=True):
                writer.write_tensor_data(quantized(piece, kind))
            for file in writer.fout or ():
                file.flush()
                os.fsync(file.fileno())
        finally:
            writer.close()
        os.replace(temporary / path.name, path)
        sync_folder(path.parent)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)

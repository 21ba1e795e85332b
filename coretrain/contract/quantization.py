"""Weights in 4 and 8 bits, as both stacks hold them: the numbers, the bytes, and how they are made.

Weights are quantized once, on the host, when a run takes them over, so that both stacks train over the same bytes; each
has its own `dequantize`, inside its compiled step. A weight [out, in] is flattened row by row and cut into blocks.

- `nf4` (Dettmers et al. 2023): 16 levels, quantiles of a normal distribution, times the largest magnitude of each 64
  numbers; two to a byte, the first in the high half. Those magnitudes are quantized too: less their mean, to 8 bits of
  a dynamic map, in blocks of 256. 4.127 bits a weight. The bytes are those of bitsandbytes' reference; its kernel for
  CPUs takes the second nearest scale for one in a thousand, and its mean may be one unit in the last place off.
- `int8`, `int4`: signed integers times a step for each 128 numbers, the largest magnitude over 127 or 7. 8.25 and 4.25
  bits a weight. int4 is packed as nf4 is, with 8 added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.base.arrays import Array
from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import Parameter, parameter_table

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
KINDS = ("nf4", "int8", "int4")
BLOCK = {"nf4": 64, "int8": 128, "int4": 128}
"""Numbers that share a scale."""
SCALES = 256
"""Scales of nf4 that share a step of their own."""
LEVELS = {"int8": 127, "int4": 7}


# The quantiles of the paper's appendix E, as bitsandbytes rounds them.
NF4: Floats = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


@dataclass(frozen=True)
class Quantized:
    """One weight in few bits."""

    kind: str
    shape: tuple[int, ...]
    arrays: Mapping[str, NDArray[np.generic]]
    """`values` uint8 (nf4, int4: two to a byte) or int8; `scales` float32 a block. nf4 has `scales` in uint8, `steps`
    float32 for each 256 of them, and their `offset` float32 []."""

    @property
    def bits(self) -> float:
        """Bits for each weight, with all that belongs to it."""
        return 8 * sum(array.nbytes for array in self.arrays.values()) / math.prod(self.shape)


@functools.cache
def quantized_parameters(config: RunConfig) -> tuple[Parameter, ...]:
    """The frozen matrices that a run holds in `adapter.quantize`: those of the blocks; none where that is none.

    Embeddings and head stay whole, as in QLoRA: they are looked up, or share their numbers, or end in the logits, where
    rounding shows most. Raises `UserError` naming a matrix that isn't whole blocks.
    """
    kind = config.adapter.quantize
    if kind == "none":
        return ()
    rows = tuple(row for row in parameter_table(config.model) if row.layer is not None and len(row.shape) == 2)
    for row in rows:
        _check_blocks(row.size, kind, row.name)
    return rows


def forms(kind: str, size: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the arrays of a weight of so many numbers: what `quantize` makes of it."""
    blocks = size // BLOCK[kind]
    if kind != "nf4":
        values = ((size,), "int8") if kind == "int8" else ((size // 2,), "uint8")
        return {"values": values, "scales": ((blocks,), "float32")}
    return {
        "values": ((size // 2,), "uint8"),
        "scales": ((blocks,), "uint8"),
        "steps": ((-(-blocks // SCALES),), "float32"),
        "offset": ((), "float32"),
    }


def held_bytes(kind: str, size: int) -> int:
    """Bytes of a weight of so many numbers."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in forms(kind, size).values())


def as_held(config: RunConfig, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """A base's tensors as a run holds them: the quantized ones as the numbers that their bytes mean, in their dtype."""
    kinds = {row.name: config.adapter.quantize for row in quantized_parameters(config)}
    held = {}
    for name in tensors:
        value = tensors[name]  # once: it may be read from a file
        if name in kinds:
            value = dequantize(quantize(value, kinds[name], name)).astype(value.dtype)
        held[name] = value
    return held


def _check_blocks(size: int, kind: str, name: str) -> None:
    if size % BLOCK[kind]:
        way = "nf4, whose blocks are of 64" if kind != "nf4" and size % BLOCK["nf4"] == 0 else "none"
        raise UserError(
            "contract/quantize-partial-block",
            f"{name} has {size:,} numbers, and {kind} takes whole blocks of {BLOCK[kind]}: "
            f"set adapter.quantize = {way}",
        )


def quantize(weight: NDArray[np.generic], kind: str, name: str = "a weight") -> Quantized:
    """A weight [out, in] in `kind`. Raises `UserError` naming it where its size or its numbers don't allow that."""
    _check_blocks(weight.size, kind, name)
    blocks = weight.astype(np.float32).reshape(-1, BLOCK[kind])
    if not np.isfinite(blocks).all():
        raise UserError(
            "contract/quantize-not-finite", f"{name} holds numbers that are not finite: it can't be quantized"
        )
    largest = np.abs(blocks).max(1)
    if kind == "nf4":
        return Quantized(kind, weight.shape, {"values": _packed(_levels(blocks, largest)), **_scales(largest)})
    steps = (largest / np.float32(LEVELS[kind])).astype(np.float32)
    whole = np.rint(blocks / np.where(steps == 0, np.float32(1), steps)[:, None]).astype(np.int8)
    values = whole.reshape(-1) if kind == "int8" else _packed((whole + 8).astype(np.uint8).reshape(-1))
    return Quantized(kind, weight.shape, {"values": values, "scales": steps})


def dequantize(weight: Quantized) -> Floats:
    """The weight [out, in] in float32, every operation rounded by itself: what both stacks' must equal bit for bit."""
    values, block = weight.arrays["values"], BLOCK[weight.kind]
    numbers = values.astype(np.float32) if weight.kind == "int8" else pairs(weight.kind)[values.astype(np.uint8)]
    return (numbers.reshape(-1, block) * _largest(weight)[:, None]).reshape(weight.shape)


def _largest(weight: Quantized) -> Floats:
    scales = weight.arrays["scales"]
    if weight.kind != "nf4":
        return scales.astype(np.float32)
    steps = np.repeat(weight.arrays["steps"].astype(np.float32), SCALES)[: scales.size]
    found: Floats = dynamic_map()[scales.astype(np.uint8)] * steps + weight.arrays["offset"].astype(np.float32)
    return found


def _levels(blocks: Floats, largest: Floats) -> Bytes:
    """The nearest of the 16 levels, as indices."""
    scaled = np.clip(blocks * (np.float32(1) / np.maximum(largest, np.float32(1e-38)))[:, None], -1, 1)
    return _nearest(scaled.astype(np.float32).reshape(-1), NF4)


def _scales(largest: Floats) -> dict[str, NDArray[np.generic]]:
    """Double quantization of the blocks' largest magnitudes."""
    offset = np.float32(largest.mean(dtype=np.float64))
    rest = np.zeros(-(-largest.size // SCALES) * SCALES, np.float32)
    rest[: largest.size] = largest - offset
    blocks = rest.reshape(-1, SCALES)
    steps = np.abs(blocks).max(1)
    scaled = np.clip(blocks * (np.float32(1) / np.maximum(steps, np.float32(1e-38)))[:, None], -1, 1)
    codes = _nearest(scaled.astype(np.float32).reshape(-1)[: largest.size], dynamic_map())
    return {"scales": codes, "steps": steps, "offset": np.array(offset)}


def _nearest(numbers: Floats, levels: Floats) -> Bytes:
    """Index of the nearest of sorted levels; a number in the middle goes down."""
    middles = (levels[:-1] + levels[1:]) / np.float32(2)
    return np.searchsorted(middles, numbers, side="left").astype(np.uint8)


@functools.cache
def pairs(kind: str) -> Floats:
    """The two numbers [256, 2] that each byte of nf4 or int4 stands for, before their block's scale."""
    codes = _unpacked(np.arange(256, dtype=np.uint8)).reshape(-1, 2)
    return NF4[codes] if kind == "nf4" else codes.astype(np.float32) - np.float32(8)


@functools.cache
def dynamic_map() -> Floats:
    """256 levels of 8 bits: a sign, an exponent of ten in unary, and a fraction in what is left (Dettmers 2015)."""
    levels = [0.0, 1.0]
    for exponent in range(7):
        edges = _even(2**exponent + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        levels += [float(sign * np.float32(10.0 ** (exponent - 6)) * middle) for sign in (1, -1) for middle in middles]
    return np.array(sorted(levels), np.float32)


def _even(count: int) -> Floats:
    """0.1 to 1 in even steps as torch.linspace has them: a float32 step from both ends to the middle, rounded once."""
    low, high = np.float32(0.1), np.float32(1)
    step = np.float64((high - low) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float64)
    upper = high - step * (count - 1 - index)
    return np.where(index < count // 2, low + step * index, upper).astype(np.float32)


def _packed(codes: Bytes) -> Bytes:
    pairs = codes.reshape(-1, 2)
    return (pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8)


def _unpacked(values: Bytes) -> Bytes:
    return np.stack([values >> 4, values & 15], 1).reshape(-1)

"""Weights in 4 and 8 bits in PyTorch: held as bytes, made whole where they are used (twin: jaxtrain/quantized.py)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coretrain.quantized import BLOCK, NF4, SCALES, Quantized, dynamic_map


@dataclass(frozen=True)
class Packed:
    """One weight's arrays on a device, as `coretrain.quantized.Quantized` has them."""

    kind: str
    shape: tuple[int, ...]
    values: Tensor
    scales: Tensor
    steps: Tensor | None = None
    offset: Tensor | None = None


def packed(weight: Quantized, device: torch.device | str | None = None) -> Packed:
    """A quantized weight on a device."""
    arrays = {name: torch.from_numpy(array.copy()).to(device) for name, array in weight.arrays.items()}
    return Packed(weight.kind, weight.shape, **arrays)


def dequantize(weight: Packed, dtype: torch.dtype | None = None) -> Tensor:
    """The weight [out, in]: bit for bit `coretrain.quantized.dequantize`, then rounded to `dtype` (default float32)."""
    if weight.kind == "int8":
        numbers = weight.values.to(torch.float32)
    else:
        codes = torch.stack([weight.values >> 4, weight.values & 15], -1).reshape(-1)
        numbers = _levels(codes, weight.kind)
    blocks = numbers.reshape(-1, BLOCK[weight.kind]) * _largest(weight)[:, None]
    return blocks.reshape(weight.shape).to(dtype or torch.float32)


def _levels(codes: Tensor, kind: str) -> Tensor:
    if kind == "int4":
        return codes.to(torch.float32) - 8
    return torch.from_numpy(NF4).to(codes.device)[codes.int()]


def _largest(weight: Packed) -> Tensor:
    """The largest magnitude of each block (nf4), or its step."""
    if weight.steps is None or weight.offset is None:
        return weight.scales
    levels = torch.from_numpy(dynamic_map()).to(weight.scales.device)[weight.scales.int()]
    return levels * weight.steps.repeat_interleave(SCALES)[: levels.numel()] + weight.offset

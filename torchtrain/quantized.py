"""Weights in 4 and 8 bits in PyTorch: held as bytes, made whole where they are used (twin: jaxtrain/quantized.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coretrain.config.run import RunConfig
from coretrain.contract.quantization import (
    BLOCK,
    SCALES,
    Quantized,
    dynamic_map,
    forms,
    pairs,
    quantize,
    quantized_parameters,
)

# Made here, not where they are used: torch.compile can't see through what numpy keeps.
_PAIRS = {kind: torch.from_numpy(pairs(kind)) for kind in ("nf4", "int4")}
_SCALES = torch.from_numpy(dynamic_map())


@dataclass(frozen=True)
class Packed:
    """One weight's arrays on a device, as `coretrain.contract.quantization.Quantized` has them."""

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
    """The weight [out, in]: bit for bit as the contract has it, then rounded to `dtype` (default float32)."""
    if weight.kind == "int8":
        numbers = weight.values.to(torch.float32)
    else:
        # two numbers at a time: of the codes one by one there would be copies several times the weight's size
        numbers = F.embedding(weight.values.int(), _PAIRS[weight.kind].to(weight.values.device))
    blocks = numbers.view(-1, BLOCK[weight.kind]).mul_(_largest(weight)[:, None])
    return blocks.view(weight.shape).to(dtype or torch.float32)


def _largest(weight: Packed) -> Tensor:
    """The largest magnitude of each block (nf4), or its step."""
    if weight.steps is None or weight.offset is None:
        return weight.scales
    levels = _SCALES.to(weight.scales.device)[weight.scales.int()]
    return levels * weight.steps.repeat_interleave(SCALES)[: levels.numel()] + weight.offset


class QuantizedWeight(nn.Module):
    """A frozen weight [out, in] in bytes, in the place of a linear layer's own; it has no gradient."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.shape = kind, shape
        for name, (form, dtype) in forms(kind, shape[0] * shape[1]).items():
            self.register_buffer(name, torch.empty(form, dtype=getattr(torch, dtype)), persistent=False)

    @property
    def packed(self) -> Packed:
        """The weight's arrays."""
        return Packed(self.kind, self.shape, **dict(self.named_buffers()))

    def forward(self, x: Tensor) -> Tensor:
        """W x: x [..., in] -> [..., out], in the dtype of x."""
        weight = self.packed
        if not x.requires_grad:  # under a first layer nothing trains; torch.compile can't trace what keeps nothing
            return F.linear(x, dequantize(weight, x.dtype))
        return _Product.apply(x, weight.kind, weight.shape, weight.values, weight.scales, weight.steps, weight.offset)


def allocate(config: RunConfig, model: Any) -> None:
    """Put bytes, still empty, in the place of every weight of `quantized_parameters`."""
    for row in quantized_parameters(config):
        module = model.get_submodule(row.name.rpartition(".")[0])
        module.weight, module.held = None, QuantizedWeight(config.adapter.quantize, row.shape)


def quantize_into(config: RunConfig, model: Any, tensors: Mapping[str, np.ndarray], device: torch.device) -> None:
    """Fill the bytes from a base's whole `tensors`, quantized on the host one at a time."""
    for row in quantized_parameters(config):
        held = model.get_submodule(row.name.rpartition(".")[0]).held
        weight = packed(quantize(np.asarray(tensors[row.name]), config.adapter.quantize, row.name), device)
        for name, _ in held.named_buffers():
            setattr(held, name, getattr(weight, name))  # replaced, not copied into: the model's own dtype is another


class _Product(torch.autograd.Function):
    """x W^T. Between forward and backward only bytes are kept: the weight is made anew from them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kind: str, shape: tuple[int, ...], values: Tensor, scales: Tensor, *nested: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(values, scales, *nested)
        ctx.kind, ctx.shape = kind, shape
        return F.linear(x, dequantize(Packed(kind, shape, values, scales, *nested), x.dtype))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        values, *rest = ctx.saved_tensors
        weight = Packed(ctx.kind, ctx.shape, _only_with(values, upstream[0]), *rest)
        return (upstream[0] @ dequantize(weight, upstream[0].dtype), *(None,) * 6)


def _only_with(values: Tensor, x: Tensor) -> Tensor:
    """`values` as something that a compiler can't know before x."""
    # It would find both dequantizations of a weight equal, make one, and keep its result for the backward pass.
    if not torch.compiler.is_compiling():
        return values
    first = x[(0,) * x.ndim]
    return values ^ (torch.isnan(first) & torch.isinf(first)).to(values.dtype)  # which no number is

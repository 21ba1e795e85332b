"""FLOPs of a compiled program's matmuls: dots, convolutions (as TPUs write dots), and attention kernels.

Attention kernels are foreign to the text. Their matmuls are counted from their shapes, half of all pairs of tokens.
"""

from __future__ import annotations

import math
import re

import numpy as np

from coretrain.planning.hlo.text import CALLED, Op, Program, dims

ATTENTION = {"fwd": 2, "dkv": 4, "dq": 3}
"""Matmuls of a splash kernel, by a part of its name."""
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)")


class Matmuls:
    """FLOPs of a program's instructions, with what they call."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.known: dict[str, float] = {}

    def within(self, name: str) -> float:
        """FLOPs of a fused computation, with what it calls."""
        if name not in self.known:
            inner = self.program.ops.get(name, ())
            self.known[name] = sum(self.of(op, self.program.types[name]) for op in inner)
        return self.known[name]

    def of(self, op: Op, types: dict[str, str]) -> float:
        """FLOPs of an instruction, with what it calls."""
        called = CALLED.findall(op.line) if op.kind in ("fusion", "call") else []
        return matmul_flops(op, types) + sum(map(self.within, called))


def matmul_flops(op: Op, types: dict[str, str]) -> float:
    """FLOPs of a dot, of a convolution (as TPUs write a dot), or of a splash kernel; 0 of all else."""
    if op.kind == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.line)
        left = dims(types.get(op.operands[0], ""))
        inner = [left[int(n)] for n in summed[1].split(",") if n] if summed else []
        return 2.0 * math.prod(dims(op.type)) * math.prod(inner)
    labels = _LABELS.search(op.line) if op.kind == "convolution" else None
    if labels:
        source, kernel, out = (dims(shape) for shape in (types[op.operands[0]], types[op.operands[1]], op.type))
        found = 2.0 * kernel[labels[2].index("i")] * out[labels[3].index("b")] * out[labels[3].index("f")]
        window = dict(_WINDOW.findall(op.line))
        for number, digit in enumerate(sorted(set(labels[3]) - {"b", "f"})):
            sizes = source[labels[1].index(digit)], kernel[labels[2].index(digit)], out[labels[3].index(digit)]
            found *= _pairs(*sizes, {key: value.split("x")[number] for key, value in window.items()})
        groups = re.search(r"batch_group_count=(\d+)", op.line)
        return found / int(groups[1]) if groups else found
    if op.kind == "custom-call" and "splash" in op.name:
        kinds = [count for part, count in ATTENTION.items() if part in op.name]
        shapes = [dims(types.get(name, "")) for name in op.operands]
        whole = [shape for shape in shapes if len(shape) == 3 and shape[-1] >= 64][:2]
        if kinds and len(whole) == 2:
            return kinds[0] * 2.0 * math.prod(whole[0]) * whole[1][1] / 2
    return 0.0


def _pairs(source: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Of a spatial axis: products that meet a number of the source, neither padding nor what dilation puts between."""
    stride, wide, apart = (int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(window.get("pad", "0_0").split("_")[0])
    at = np.arange(out)[:, None] * stride - low + np.arange(kernel)[None, :] * apart
    return int(((at % wide == 0) & (at >= 0) & (at < source * wide)).sum())

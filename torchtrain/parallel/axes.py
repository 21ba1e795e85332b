"""One axis of processes, and how activations cross it.

This file has no twin: in JAX the compiler puts these sums in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of the layout as this process sees it: how many share, which one it is, and their process group."""

    size: int = 1
    index: int = 0
    group: Any = None

    def sum(self, x: Tensor) -> Tensor:
        """The sum of `x` over the axis, in place."""
        if self.size > 1:
            dist.all_reduce(x, group=self.group)
        return x

    def largest(self, x: Tensor) -> Tensor:
        """The largest of `x` over the axis, in place."""
        if self.size > 1:
            dist.all_reduce(x, dist.ReduceOp.MAX, group=self.group)
        return x

    def joined(self, x: Tensor) -> Tensor:
        """The axis' parts of `x`, one after the other along the last dimension."""
        if self.size == 1:
            return x
        return torch.cat(self._gathered(x), -1)

    def stacked(self, x: Tensor) -> Tensor:
        """The axis' parts of `x`, one after the other along the first dimension."""
        return x if self.size == 1 else torch.cat(self._gathered(x))

    def _gathered(self, x: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return parts


ALONE = Axis()


class _CopyToRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.axis.sum(upstream[0].contiguous().clone()), None


class _ReduceFromRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return axis.sum(x.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0], None


def copy_to_tensor_region(x: Tensor, axis: Axis) -> Tensor:
    """`x`, about to be used by each process of the axis for its own part of a layer: its gradient is their sum.

    With `reduce_from_tensor_region` these are the operators f and g of Megatron-LM (Shoeybi et al. 2019).
    """
    return x if axis.size == 1 else _CopyToRegion.apply(x, axis)


def reduce_from_tensor_region(x: Tensor, axis: Axis) -> Tensor:
    """The sum of the axis' partial results `x`; each process's gradient is that of the sum."""
    return x if axis.size == 1 else _ReduceFromRegion.apply(x, axis)

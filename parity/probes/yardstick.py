"""What rounding alone does: a model in float64 whose values are rounded where a correct stack rounds them.

Every processor and kernel sums in an order of its own, but all of them write down the same values in the same
precision. So the size of that rounding is the size of what may be wrong, whatever the model, the weights and the
machine: in bfloat16 and float16 a correct stack is off by about as much, in float32, whose sums are rounded too, by
several times as much. It is measured in the same session, on torch's model, before any bug is planted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import torchtrain.attention
from coretrain.base.arrays import Tensors
from coretrain.contract.taps import tapped


class Precision:
    """How numbers of a dtype are written down: values as they are, gradients at a loss scale."""

    def __init__(self, dtype: str, scale: float) -> None:
        self.dtype, self.scale = getattr(torch, dtype), scale

    def value(self, x: Any) -> Any:
        """x rounded once, in the dtype that it has."""
        return x.to(self.dtype).to(x.dtype)

    def gradient(self, x: Any) -> Any:
        """The same of a gradient: scaled, a float16 holds it."""
        return self.value(x * self.scale) / self.scale

    def weights(self, weights: Tensors) -> dict[str, np.ndarray]:
        """Matrices rounded; gains and biases stay, as norms take them in float32 and most of them are small."""
        return {
            name: self.value(torch.from_numpy(np.ascontiguousarray(tensor))).numpy() if tensor.ndim > 1 else tensor
            for name, tensor in weights.items()
        }


class _Rounded(torch.autograd.Function):
    """A value rounded on its way forward, its gradient on its way back."""

    @staticmethod
    def forward(ctx: Any, x: Any, to: Precision) -> Any:
        ctx.to = to
        return to.value(x)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        return ctx.to.gradient(g), None


class _Attention(torch.autograd.Function):
    """Causal attention as a fused kernel rounds it: scores, weights and output; in the backward pass theirs.

    What a query's gradient loses is more than the rounding of its terms: the kernel takes the sum of each row's
    weights x their gradients from the rounded output, so that a row's terms no longer cancel.
    """

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, to: Precision) -> Any:
        B, T, H, C = q.shape
        S, K = k.shape[1:3]
        q = q.reshape(B, T, K, H // K, C) / C**0.5
        late = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        scores = to.value(torch.einsum("btkgc,bskc->bkgts", q, k))
        weights = scores.masked_fill(late, -torch.inf).softmax(-1)
        out = to.value(torch.einsum("bkgts,bskc->btkgc", to.value(weights), v))
        ctx.save_for_backward(q, k, v, weights, out)
        ctx.to = to
        return out.reshape(B, T, H, C)

    @staticmethod
    def backward(ctx: Any, g: Any) -> Any:
        q, k, v, weights, out = ctx.saved_tensors
        to: Precision = ctx.to
        shape, C = g.shape, g.shape[-1]
        g = to.gradient(g).reshape(out.shape)
        taken = torch.einsum("btkgc,btkgc->bkgt", g, out)[..., None]
        of_weights = to.gradient(torch.einsum("btkgc,bskc->bkgts", g, v))
        of_scores = to.gradient(weights * (of_weights - taken))
        of_q = to.gradient(torch.einsum("bkgts,bskc->btkgc", of_scores, k) / C**0.5)
        of_k = to.gradient(torch.einsum("bkgts,btkgc->bskc", of_scores, q))
        of_v = to.gradient(torch.einsum("bkgts,btkgc->bskc", to.value(weights), g))
        return of_q.reshape(shape), of_k, of_v, None


@contextmanager
def rounding_at_taps(to: Precision) -> Iterator[None]:
    """Within, torch's model rounds its value at every tap and in the plain attention kernel, forward and backward."""
    kernels = torchtrain.attention.KERNELS
    compute = functools.partial(_attention, to=to)
    with (
        patch.dict(kernels, {"plain": replace(kernels["plain"], compute=compute)}),
        tapped(lambda name, x: _Rounded.apply(x, to)),
    ):
        yield


def _attention(q: Any, k: Any, v: Any, to: Precision) -> Any:
    return _Attention.apply(q, k, v, to)

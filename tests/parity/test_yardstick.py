"""The unit of the budgets: float64 with each value rounded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import torchtrain.attention
from coretrain.contract.taps import tap
from parity.pair import SMALL
from parity.probes.budgets import of_rounding
from parity.probes.yardstick import Precision, rounding_at_taps


def attention(arrays):
    """Output and gradients of the plain kernel as the table has it now."""
    *inputs, weight = map(torch.from_numpy, arrays)
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = torchtrain.attention.attention("plain", *leaves)
    out.backward(weight)
    return [x.detach().numpy() for x in (out, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize(("T", "S", "H", "K"), [(6, 6, 4, 2), (2, 6, 4, 1), (5, 5, 3, 3)])
def test_its_attention_is_the_plain_one_but_for_the_rounding(T, S, H, K):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, n, h, 8)) for n, h in ((T, H), (S, K), (S, K), (T, H))]
    right = attention(arrays)
    with rounding_at_taps(Precision("float64", 1.0)):
        same = attention(arrays)
    with rounding_at_taps(Precision("bfloat16", 1024.0)):
        rounded = attention(arrays)
    for a, b, c in zip(right, same, rounded, strict=True):
        assert np.linalg.norm(a - b) < 1e-14 * np.linalg.norm(a)
        assert 1e-3 < np.linalg.norm(a - c) / np.linalg.norm(a) < 2e-2
    assert all((a == b).all() for a, b in zip(right, attention(arrays), strict=True)), "the table is as it was"


def test_values_and_gradients_are_rounded_at_taps():
    """A value to the nearest bfloat16; a gradient too small for float16 survives by the loss scale, and not without."""
    with rounding_at_taps(Precision("bfloat16", 1.0)):
        assert tap("here", torch.tensor(1 + 2**-7 + 2**-9, dtype=torch.float64)) == 1 + 2**-7
    for scale, kept in ((1.0, 0.0), (1024.0, 1e-8)):
        x = torch.ones((), dtype=torch.float64, requires_grad=True)
        with rounding_at_taps(Precision("float16", scale)):
            (tap("here", x) * 1e-8).backward()
        assert x.grad.item() == pytest.approx(kept, rel=1e-2)
    assert tap("here", 1.1) == 1.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_unit_is_the_size_of_the_dtypes_rounding(dtype):
    """Between one and eight roundings of the dtype in the logits: some 30 values one after another."""
    logits, gradient = of_rounding(dtype, "llama-like", "perturbed")
    half = torch.finfo(getattr(torch, dtype)).eps / 2
    assert 1 < logits / half < 8
    assert logits < gradient < 10 * logits
    assert SMALL["precision.compute"] == "float64"

"""A training precision against float64 from the same weights: logits, and the worst gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from parity.errors import nrel, worst_tensor
from parity.gates import (
    EVEN,
    SLACK,
    Gate,
    budget,
)
from parity.pair import (
    VARIANTS,
    batches,
    make_config,
    noise_only,
)
from parity.probes.sides import (
    TORCH,
    UNMUTATED,
    Seen,
    Side,
    gradients_of,
    logits_of,
    make,
    weights_of,
)

LOSS_SCALE = {"float16": 1024.0}
"""float16's gradients are made at this loss scale, as in training: without it the small ones would be subnormal."""


def gates(dtype: str) -> tuple[Gate, ...]:
    """Those of a precision on the CPU."""
    return budget("cpu", dtype, "logits"), budget("cpu", dtype, "gradient"), EVEN


def _seen(s: Side, dtype: str, variant: str, state: str, shared: frozenset[str]) -> Seen:
    kernel = "plain" if dtype == "float64" else "auto"
    config = make_config(VARIANTS[variant], precision__compute=dtype, execution__attention=kernel)
    stack, batch = make(s, config, weights_of(config, state), shared), batches(config, 1)[0]
    scale = LOSS_SCALE.get(dtype, 1.0)
    stack.gradients(batch, 3, scale)
    gradients = {name: g.astype(np.float64) / scale for name, g in gradients_of(s, stack).items()}
    return {"logits": logits_of(s, stack, batch.tokens, 3), "gradients": gradients}


@functools.cache
def _exact(variant: str, state: str) -> Seen:
    return _seen(TORCH, "float64", variant, state, UNMUTATED)


def run(dtype: str) -> Callable[[Side, str, str, frozenset[str]], Seen]:
    """The experiment of a precision."""
    return lambda s, variant, state, shared: _seen(s, dtype, variant, state, shared)


def judge(dtype: str) -> Callable[[Seen, Seen, str, str], dict[Gate, float]]:
    """Its judge: torch in float64, seen before a bug is planted, is the reference of both stacks."""

    def judged(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
        first, second = (errors(seen, variant, state) for seen in (ours, theirs))
        return {**dict(zip(gates(dtype)[:2], first, strict=True)), EVEN: unevenness(dtype, [first[0], second[0]])}

    return judged


def errors(seen: Seen, variant: str, state: str) -> tuple[float, float]:
    """Of the logits and of the worst gradient."""
    exact, apart = _exact(variant, state), noise_only(make_config(VARIANTS[variant]))
    return nrel(seen["logits"], exact["logits"]), worst_tensor(seen["gradients"], exact["gradients"], apart)[0]


def unevenness(dtype: str, logits: Sequence[float], device: str = "cpu") -> float:
    """How many times as far off in its logits as the better stack the worse one is."""
    figure = SLACK * budget(device, dtype, "logits").floor
    return float(np.max(logits) / (np.min(logits) + figure))

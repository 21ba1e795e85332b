"""A training precision against float64 from the same weights: logits, and the worst gradient, in units of what rounding
each value once does (yardstick.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

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
from parity.probes.yardstick import Precision, rounding_at_taps

LOSS_SCALE = {"float16": 1024.0}
"""float16's gradients are made at this loss scale, as in training: without it the small ones would be subnormal."""


def gates(dtype: str) -> tuple[Gate, ...]:
    """Those of a precision on the CPU."""
    return budget("cpu", dtype, "logits"), budget("cpu", dtype, "gradient"), EVEN


UPDATE = 3
"""Of whose dropout the masks are."""


def _seen(s: Side, dtype: str, variant: str, state: str, shared: frozenset[str]) -> Seen:
    kernel = "plain" if dtype == "float64" else "auto"
    config = make_config(VARIANTS[variant], precision__compute=dtype, execution__attention=kernel)
    return _of(s, make(s, config, weights_of(config, state), shared), LOSS_SCALE.get(dtype, 1.0))


def _of(s: Side, stack: Any, scale: float) -> Seen:
    batch = batches(stack.config, 1)[0]
    stack.gradients(batch, UPDATE, scale)
    gradients = {name: g.astype(np.float64) / scale for name, g in gradients_of(s, stack).items()}
    return {"logits": logits_of(s, stack, batch.tokens, UPDATE), "gradients": gradients}


@functools.cache
def exact(variant: str, state: str) -> Seen:
    """Logits and gradients of torch in float64 on the CPU, before any bug is planted."""
    return _seen(TORCH, "float64", variant, state, UNMUTATED)


@functools.cache
def of_rounding(dtype: str, variant: str, state: str) -> tuple[float, float]:
    """What rounding each value once to `dtype` costs in the logits and in the worst gradient."""
    to = Precision(dtype, LOSS_SCALE.get(dtype, 1.0))
    config = make_config(VARIANTS[variant])
    stack = make(TORCH, config, to.weights(weights_of(config, state)), UNMUTATED)
    with rounding_at_taps(to):
        seen = _of(TORCH, stack, 1.0)  # the scale is in the rounding
    return errors(seen, variant, state)


def run(dtype: str) -> Callable[[Side, str, str, frozenset[str]], Seen]:
    """The experiment of a precision."""
    return lambda s, variant, state, shared: _seen(s, dtype, variant, state, shared)


def judge(dtype: str) -> Callable[[Seen, Seen, str, str], dict[Gate, float]]:
    """Its judge: torch in float64, seen before a bug is planted, is the reference of both stacks."""

    def judged(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
        first, second = (in_units(errors(seen, variant, state), dtype, variant, state) for seen in (ours, theirs))
        return {**dict(zip(gates(dtype)[:2], first, strict=True)), EVEN: unevenness(dtype, [first[0], second[0]])}

    return judged


def errors(seen: Seen, variant: str, state: str) -> tuple[float, float]:
    """Of the logits and of the worst gradient, against float64."""
    right, apart = exact(variant, state), noise_only(make_config(VARIANTS[variant]))
    return nrel(seen["logits"], right["logits"]), worst_tensor(seen["gradients"], right["gradients"], apart)[0]


def in_units(found: Sequence[float], dtype: str, variant: str, state: str) -> tuple[float, float]:
    """Errors of logits and worst gradient in units of what rounding alone costs."""
    logits, gradient = (error / unit for error, unit in zip(found, of_rounding(dtype, variant, state), strict=True))
    return logits, gradient


def unevenness(dtype: str, logits: Sequence[float], device: str = "cpu") -> float:
    """How many times as far off in its logits, in units of rounding, as the better stack the worse one is."""
    figure = SLACK[dtype] * budget(device, dtype, "logits").floor
    return float(np.max(logits) / (np.min(logits) + figure))

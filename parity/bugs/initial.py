"""Bugs in the initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from parity.gates import INITIAL
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import Side


def _initial(patch: Patch, s: Side, change: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    wrap(patch, s.trainer, "initial_parameters", lambda f: lambda model, seed: change(model, f(model, seed)))


@mutant("init", INITIAL, state="initial")
def init_std_off_by_a_millionth(patch: Patch, s: Side) -> None:
    """A std that isn't quite the config's."""
    _initial(patch, s, lambda model, w: {name: v * np.float32(1 + 1e-6) for name, v in w.items()})


@mutant("init", INITIAL, state="initial")
def init_from_another_stream(patch: Patch, s: Side) -> None:
    """The framework's own random numbers; here: another seed."""
    wrap(patch, s.trainer, "initial_parameters", lambda f: lambda model, seed: f(model, seed + 1))


@mutant("init", INITIAL, state="initial")
def init_transposed(patch: Patch, s: Side) -> None:
    """Square matrices laid out the other way: shapes can't show it."""

    def change(model: Any, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: v.T.copy() if v.ndim == 2 and v.shape[0] == v.shape[1] else v for name, v in w.items()}

    _initial(patch, s, change)


@mutant("init", INITIAL, state="initial")
def residual_scale_missing_from_init(patch: Patch, s: Side) -> None:
    """GPT-2's 1 / sqrt(2 L) left out of the projections into the residual stream."""

    def change(model: Any, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scale = np.float32(math.sqrt(2 * model.layers))
        return {n: v * scale if n.endswith(("out.weight", "down.weight")) else v for n, v in w.items()}

    _initial(patch, s, change)


@mutant("init", INITIAL, state="initial")
def biases_start_like_a_linear_layers(patch: Patch, s: Side) -> None:
    """nn.Linear's own uniform biases, which nobody set to zero."""
    rng = np.random.default_rng(0)

    def change(model: Any, w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: rng.uniform(-0.1, 0.1, v.shape).astype(v.dtype) if ".bias" in n else v for n, v in w.items()}

    _initial(patch, s, change)

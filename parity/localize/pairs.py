"""Any torch function beside any JAX function: where the two part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.contract.taps import tap
from parity.localize.judge import judge
from parity.localize.recorders import (
    LOSS,
    JaxRecorder,
    Record,
    hooked,
    record_torch,
)
from parity.localize.rounding import evidence_of, judge_rounding, rounding_rows
from parity.localize.rows import (
    FORWARD,
    GRADIENT,
    GRADIENT_FLOOR,
    tap_rows,
    tensor_rows,
)
from parity.localize.show import Report
from parity.page.film import film

ALWAYS = {"output", LOSS}
"""Taps that `localize` itself puts on both sides."""


def compare(torch_tensors: Tensors, jax_tensors: Tensors, cap: float = FORWARD, title: str = "compare") -> Report:
    """The verdict on tensors recorded by any means, by name in the order of the computation."""
    if not torch_tensors and not jax_tensors:
        raise UserError("parity/nothing-to-compare", "compare has no tensors on either side: record some first")
    rows = [replace(row, cap=cap) for row in tap_rows(Record(dict(torch_tensors)), Record(dict(jax_tensors)), None)]
    verdict = judge(rows)
    ours, theirs = Record(dict(torch_tensors)), Record(dict(jax_tensors))
    return Report(title, rows, verdict, evidence_of(verdict, ours, theirs), frames=film(ours, theirs, None))


def localize(
    torch_function: Callable[..., Tensor],
    jax_function: Callable[..., jax.Array],
    inputs: Tensors,
    differentiate: Sequence[str] | None = None,
    title: str = "localize",
    float32: bool = True,
) -> Report:
    """Run both on the same named arrays, free and teacher-forced, forward and backward; see the module's own text.

    Each function takes the inputs by name, as tensors of its framework, and returns one array, of which a fixed random
    projection is differentiated with respect to the inputs in `differentiate` (default: all floating ones). Floating
    inputs come in float64, and in float32 for the second look: whatever else the functions hold must follow them.
    """
    jax.config.update("jax_enable_x64", True)
    wanted = [name for name, value in inputs.items() if np.issubdtype(value.dtype, np.floating)]
    wanted = wanted if differentiate is None else list(differentiate)

    def run(dtype: str, teacher_forced: bool) -> tuple[Record, Record, Record | None, Tensors, Tensors]:
        cast = {
            name: value.astype(dtype) if np.issubdtype(value.dtype, np.floating) else value
            for name, value in inputs.items()
        }
        tensors = {name: torch.from_numpy(np.array(v)).requires_grad_(name in wanted) for name, v in cast.items()}

        def torch_loss() -> Tensor:
            output = tap("output", torch_function(**tensors))
            return (output * torch.from_numpy(_direction(tuple(output.shape), dtype))).sum()

        def jax_loss(params: dict[str, jax.Array], rest: dict[str, jax.Array]) -> jax.Array:
            output = tap("output", jax_function(**params, **rest))
            return (output * _direction(output.shape, dtype)).sum()

        ours = record_torch(torch_loss)
        recorder = JaxRecorder(jax_loss, forget=True)
        arguments = {n: cast[n] for n in wanted}, {n: v for n, v in cast.items() if n not in wanted}
        theirs, gradients = recorder(*arguments)
        if ours.values.keys() - ALWAYS and not theirs.values.keys() - ALWAYS:
            raise UserError(
                "parity/jax-without-taps",
                "torch has taps and JAX has none: call coretrain.contract.taps.tap at the same places of the JAX "
                "function",
            )
        on_ours = None
        if teacher_forced:
            on_ours, gradients = recorder(*arguments, seats=ours)
        torch_gradients = {n: _array(tensors[n].grad, tensors[n]) for n in wanted}
        return ours, theirs, on_ours, torch_gradients, {n: np.asarray(gradients[n]) for n in wanted}

    ours, theirs, teacher_forced, our_gradients, their_gradients = run("float64", True)
    rows = tap_rows(ours, theirs, teacher_forced)
    rows += tensor_rows("gradient", our_gradients, their_gradients, GRADIENT, GRADIENT_FLOOR)
    verdict, frames = judge(rows), film(ours, theirs, teacher_forced)
    if verdict.kind == "same" and float32:
        narrow = run("float32", False)
        below = rounding_rows(ours, narrow[0], narrow[1], "float32")
        verdict = judge_rounding(below, narrow[0], narrow[1], "float32") or verdict
        if verdict.kind != "same":
            rows, frames = below, film(narrow[0], narrow[1], None)
    evidence = {f"input/{name}": np.asarray(value) for name, value in inputs.items()}
    evidence |= evidence_of(verdict, ours, teacher_forced or theirs)
    return Report(title, rows, verdict, evidence, frames=frames)


def localize_module(
    module: torch.nn.Module,
    jax_function: Callable[..., jax.Array],
    inputs: Tensors,
    taps: Sequence[str],
    **options: Any,
) -> Report:
    """`localize` for a torch module called with `inputs` by name, the outputs of its submodules `taps` being tapped.

    Its parameters join the inputs under their own names, perturbed: each element by up to 0.2 (seed 0), so that no bias
    is zero and no gain one. `options` are those of `localize`.
    """
    rng = np.random.default_rng(0)
    weights = {name: p.detach().cpu().numpy() for name, p in module.named_parameters()}
    weights = {name: value + rng.uniform(-0.2, 0.2, value.shape) for name, value in weights.items()}

    def torch_function(**named: Tensor) -> Tensor:
        parameters = {name: named.pop(name) for name in weights}
        with hooked({module.get_submodule(name): name for name in taps}):
            output = torch.func.functional_call(module, parameters, (), named)
        return output[0] if isinstance(output, tuple) else output

    options.setdefault("title", f"{type(module).__name__}, torch and JAX")
    return localize(torch_function, jax_function, {**inputs, **weights}, **options)


def _direction(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def _array(gradient: Tensor | None, like: Tensor) -> np.ndarray:
    return torch.zeros_like(like).numpy() if gradient is None else gradient.to_dense().numpy()

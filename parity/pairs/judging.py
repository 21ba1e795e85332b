"""Where a pair parts, and why: the whole way from two models, or two functions, to a report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor, nn

from coretrain.base.arrays import Tensors
from parity.localize.recorders import LOSS, Record
from parity.localize.rounding import evidence_of, judge_rounding, rounding_rows
from parity.localize.rows import Row
from parity.localize.show import Report
from parity.page.film import film
from parity.pairs import torch_side
from parity.pairs.engine import MOST, Look, Pair, check_taps, look, met, rows_of
from parity.pairs.frontier import frontier
from parity.pairs.jax_side import JaxModel, is_array, model_of
from parity.pairs.mapping import Map
from parity.pairs.outputs import chosen
from parity.pairs.real import Real
from parity.pairs.verdict import islands, places, verdict_on, where

PERTURBED = 0.2
"""Weights are changed by up to this, so that no bias is 0 and no gain 1: a mistake there would not show."""


def judge_pair(
    pair: Pair, title: str, float32: bool = True, notes: Sequence[str] = (), explicit: bool = True
) -> Report:
    """The report on a pair of functions. `explicit`: taps that one side lacks are errors, not notes."""
    jax.config.update("jax_enable_x64", True)
    real = Real(pair.mask)
    said = []
    if not explicit:
        ours, theirs, closed = met(pair)
        said = _left_out(pair, ours, theirs, closed)
        pair = replace(pair, only=frozenset({*ours} & {*theirs} | {"output", "loss"}))
    wide = look(pair, "float64", real)
    if explicit and not wide.closed:
        check_taps(wide.ours, wide.free)
    narrow = look(pair, "float32", real, wide.raw) if float32 else None
    apart = frozenset(name.replace("@", "") for name in wide.closed)
    said += [f"not compared: {name}, {reason}" for name, reason in wide.closed.items() if explicit]
    rows = rows_of(wide, narrow, real, apart)
    verdict = verdict_on(rows, wide, narrow, _noises(rows, wide, narrow, real))
    more = [*notes, *said, *_whole(real)]
    frames = film(wide.ours, wide.free, wide.forced)
    lead = next((row for row in rows if row.title == verdict.tap), None)
    if verdict.kind == "same" and narrow is not None:
        own = [real.only(record) for record in (wide.ours, narrow.alone, narrow.free)]
        below = _rounding(own, narrow, (*apart, LOSS))
        other = judge_rounding(below, own[1], own[2], "float32")
        if other is not None:
            verdict, rows, frames = other, below, film(own[1], own[2], None)
            lead = next((row for row in rows if row.title == verdict.tap), None)
    if lead is not None:
        left: dict[str, frozenset[str]] = {}
        found: list[str] = []
        if verdict.kind == "algorithm":
            left = frontier(pair, lead, wide.ours)
        for side, lines in left.items():
            found.append(f"{side}'s values are no longer {_other(side)}'s from: {places(lines)}")
        more = [*found, *where(lead, wide, left), *more]
    else:
        more += islands(wide)
    evidence = {f"input/{name}": np.asarray(value) for name, value in pair.inputs.items()}
    evidence |= {f"weights/{name}": np.asarray(value) for name, value in pair.weights.items()}
    evidence |= evidence_of(verdict, wide.ours, wide.forced)
    return Report(title, rows, verdict, evidence, notes=more, measured=True, frames=frames)


def _rounding(records: Sequence[Record], narrow: Look, apart: Collection[str]) -> list[Row]:
    """Both sides' float32 against float64. Where they lose digits alike, that is the function's own condition, unless
    one of them computes below float32 there.
    """
    exact, ours, theirs = records
    usual, wide = (rounding_rows(exact, ours, theirs, "float32", most) for most in (None, MOST))
    return [
        first if any(way.narrow for way in narrow.ways.get(first.name, ())) else second
        for first, second in zip(usual, wide, strict=True)
        if first.name not in apart
    ]


def _other(side: str) -> str:
    return "torch" if side == "JAX" else "JAX"


def _left_out(pair: Pair, ours: Sequence[str], theirs: Sequence[str], closed: Mapping[str, str]) -> list[str]:
    """Of the pair's taps, those that are not compared, and why."""
    reasons = {pair.names.get(name.replace("@", ""), name.replace("@", "")): why for name, why in closed.items()}
    for name in (*pair.names.values(), *ours, *theirs):
        sides = [side for side, there in (("torch", ours), ("JAX", theirs)) if name not in there]
        if sides:
            reasons.setdefault(name, f"which {' and '.join(sides)} did not call, or gave no array")
    return [f"not compared: {name}, {reason}" for name, reason in reasons.items()]


def _whole(real: Real) -> list[str]:
    names = sorted(real.whole - {"loss"})
    return [f"compared whole, padding too, since no axis is that of tokens: {', '.join(names[:4])}"] if names else []


def _noises(rows: Sequence[Row], wide: Look, narrow: Look | None, real: Real) -> dict[str, float]:
    """What float32 alone makes at each row, where it was measured."""
    if narrow is None:
        return {}
    assumed = {name: (_island(ways[0]), _island(ways[1])) for name, ways in wide.ways.items()}
    every = rows_of(replace(wide, ways=assumed), narrow, real)
    return {row.title: row.floor for row in every}


def _island(way: Any) -> Any:
    return way if way.narrow else replace(way, narrow="float32")


def localize_models(
    torch_model: nn.Module,
    jax_model: JaxModel | Any,
    made: Map,
    inputs: Tensors,
    mask: str | None = None,
    title: str = "",
    perturb: float = PERTURBED,
    float32: bool = True,
    differentiate: Sequence[str] | None = None,
) -> Report:
    """The report on two models whose weights are brought over by a map, with the same named inputs.

    `mask` names the input ([batch, positions], not 0 at real tokens) that says what counts. `perturb`: how much the
    torch model's weights are changed before both get them (0: not at all). The torch model is judged as `eval()`.
    """
    module = torch_side.unwrapped(torch_model)
    given = {**inputs, **made.arguments_jax}
    model = jax_model if isinstance(jax_model, JaxModel) else model_of(jax_model, None, given)
    tensors, aliases = torch_side.tensors_of(module)
    made = made.checked(tensors, aliases, model.leaves)
    modules = {torch_side.clean(name) for name, _ in module.named_modules()}
    taps = made.tap_pairs(modules)
    parameters = {torch_side.clean(name) for name, _ in module.named_parameters()}
    rng = np.random.default_rng(0)
    weights = {name: tensor.detach().cpu().double().numpy() for name, tensor in tensors.items()}
    for name in [name for name in weights if name in parameters]:
        weights[name] = weights[name] + rng.uniform(-perturb, perturb, weights[name].shape) * bool(perturb)
    names = {path: entry.torch[0] for path, entry in taps.items()}
    wanted = {path.partition("[")[0].partition("@")[0] for path in names}
    constants = {name: value for name, value in model.leaves.items() if name in made.unused_jax}

    def torch_call(dtype: str, own: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> Tensor:
        was = module.training
        module.eval()
        try:
            arguments = {**named, **made.arguments_torch}
            output = torch_side.call(module, dtype, own, arguments, list(dict.fromkeys(names.values())))
        finally:
            module.train(was)
        return chosen(output, made.output_torch, lambda part: isinstance(part, Tensor), "torch")

    def jax_call(dtype: str, leaves: Mapping[str, Any], named: Mapping[str, Any]) -> Any:
        renamed = {theirs: named[ours] for theirs, ours in made.inputs.items() if ours in named}
        rest = {name: value for name, value in named.items() if name not in made.inputs.values()}
        with model.tapped(wanted):
            output = model.call({**constants, **leaves}, {**rest, **renamed, **made.arguments_jax}, dtype)
        return chosen(output, made.output_jax, is_array, "JAX")

    def leaves(own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return made.leaves({**own, **{name: own[first] for name, first in aliases.items()}})

    unused = {aliases.get(name, name) for name in made.unused_torch} - {
        aliases.get(name, name) for entry in made.parameters.values() for name in entry.torch
    }
    frozen = (weights.keys() - parameters) | unused
    if differentiate is not None:
        frozen |= {name for name in inputs if name not in differentiate}
    pair = Pair(
        torch_call, jax_call, inputs, weights, frozenset(frozen), leaves, names,
        {entry.torch[0]: entry.steps[0] for entry in taps.values() if any(entry.steps)},
        None if mask is None else np.asarray(inputs[mask]),
    )  # fmt: skip
    title = title or f"{type(module).__name__} in torch, {model.kind} in JAX"
    return judge_pair(pair, title, float32, explicit=False)


def localize(
    torch_function: Callable[..., Tensor],
    jax_function: Callable[..., Any],
    inputs: Tensors,
    differentiate: Sequence[str] | None = None,
    title: str = "localize",
    float32: bool = True,
    mask: str | None = None,
) -> Report:
    """Run both on the same named arrays, free and teacher-forced, forward and backward; see the module's own text.

    Each function takes the inputs by name, as tensors of its framework, and returns one array (or several, of which the
    usual one counts: logits, or the first), of which a fixed random projection is differentiated with respect to the
    inputs in `differentiate` (default: all floating ones). Floating inputs come in float64, and in float32 for the
    second look: whatever else the functions hold must follow them. Taps may lie inside jit, checkpoint, scan and vmap.
    `mask` names the input that says which tokens are real.
    """
    frozen = set() if differentiate is None else {name for name in inputs if name not in differentiate}
    pair = Pair(
        lambda dtype, weights, named: chosen(
            torch_function(**named), None, lambda part: isinstance(part, Tensor), "torch"
        ),
        lambda dtype, leaves, named: chosen(jax_function(**named), None, is_array, "JAX"),
        inputs,
        frozen=frozenset(frozen),
        mask=None if mask is None else np.asarray(inputs[mask]),
    )
    return judge_pair(pair, title, float32)


def localize_module(
    module: nn.Module, jax_function: Callable[..., Any], inputs: Tensors, taps: Sequence[str], **options: Any
) -> Report:
    """`localize` for a torch module called with `inputs` by name, the outputs of its submodules `taps` being tapped.

    Its parameters join the inputs under their own names, perturbed: each element by up to 0.2 (seed 0), so that no bias
    is zero and no gain one. `options` are those of `localize`.
    """
    module = torch_side.unwrapped(module)
    rng = np.random.default_rng(0)
    weights = {torch_side.clean(n): p.detach().cpu().double().numpy() for n, p in module.named_parameters()}
    weights = {name: value + rng.uniform(-PERTURBED, PERTURBED, value.shape) for name, value in weights.items()}

    def torch_function(**named: Tensor) -> Any:
        own = {name: named.pop(name) for name in weights}
        dtype = "float32" if any(value.dtype == torch.float32 for value in own.values()) else "float64"
        return torch_side.call(module, dtype, own, named, taps)

    options.setdefault("title", f"{type(module).__name__}, torch and JAX")
    return localize(torch_function, jax_function, {**inputs, **weights}, **options)

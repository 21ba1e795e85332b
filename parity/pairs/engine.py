"""Both sides of a pair, in float64 and float32, free and teacher-forced: records, gradients, and each error's cap.

Teacher-forced: every tap of JAX goes on with torch's value and cotangent, so that an error is seen only where it is
made. Each side is also run in float32, forced on torch's float64 values: how far that is from its own float64 is the
rounding of float32 in each segment. Where a side computes below float64 in the middle of a float64 run (a float32
island, seen in its program), so much is allowed there, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor

from coretrain.base.errors import UserError
from coretrain.contract.taps import tap, tapped
from parity.localize.recorders import LOSS, JaxRecorder, Names, Record
from parity.localize.rows import (
    COTANGENT,
    COTANGENT_FLOOR,
    FORWARD,
    FORWARD_FLOOR,
    GRADIENT,
    GRADIENT_FLOOR,
    NOISE,
    Row,
    distance,
    merged,
)
from parity.pairs.real import Real, odd_side
from parity.pairs.steps import carried_out
from parity.pairs.through import Opened, Way, base
from parity.pairs.torch_side import DTYPES, Watch, record

# Two roundings of the same sum differ by about what each is off: in the pairs of docs/bring-your-own.md (Mistral,
# Mamba-2) by at most 1.4 times the rounding measured there. What hides below this is smaller than 4 such roundings.
ISLAND = 4.0
"""A float32 island, a part in float32 within a float64 run, may differ by so many times the rounding measured there."""
LEAST = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place: an island's cap is never below `ISLAND` times this."""
MOST = 1e-2
"""No island may hide more than this."""
NARROW_TO_WIDE = 30 * 2.0**-29
"""Float64's rounding of a segment over float32's, with a margin: caps of segments that lose digits."""

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""What is compiled runs three times: compiling it well takes longer than it saves (XLA's options, of the CPU)."""

TorchCall = Callable[[str, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
"""(dtype, weights, inputs) to the output; taps on its way."""
JaxCall = Callable[[str, Mapping[str, Any], Mapping[str, Any]], Any]
"""(dtype, leaves, inputs) to the output; taps on its way."""


@dataclass
class Pair:
    """What is run."""

    torch_call: TorchCall
    jax_call: JaxCall
    inputs: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Torch's tensors by name."""
    frozen: frozenset[str] = frozenset()
    """Weights, and inputs, that aren't differentiated."""
    leaves: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda weights: {}
    """JAX's leaves, made of torch's tensors."""
    names: Mapping[str, str] = field(default_factory=dict)
    """JAX's names of taps: torch's."""
    layouts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Steps that bring torch's value at a tap into JAX's layout."""
    mask: np.ndarray | None = None
    only: frozenset[str] | None = None
    """Taps that count, by torch's names (unset: all)."""

    def floating(self) -> list[str]:
        """Inputs that are differentiated."""
        return [n for n, v in self.inputs.items() if np.issubdtype(v.dtype, np.floating) and n not in self.frozen]


@dataclass
class Look:
    """Both sides at one precision."""

    ours: Record
    """Torch's, in JAX's layouts; forced where this look was."""
    raw: Record
    """Torch's on its own, as it is."""
    alone: Record
    """Torch's on its own, in JAX's layouts."""
    free: Record
    forced: Record
    our_gradients: dict[str, np.ndarray]
    their_gradients: dict[str, np.ndarray]
    ways: dict[str, tuple[Way, Way]] = field(default_factory=dict)
    """By tap: torch's and JAX's."""
    closed: dict[str, str] = field(default_factory=dict)
    """Taps of JAX that can't be reached, with the reason."""


def look(pair: Pair, dtype: str, real: Real, exact: Record | None = None) -> Look:
    """Run both in `dtype`. `exact`: torch's float64 record, on whose values both are forced (unset: JAX on torch's)."""
    kind = DTYPES[dtype]
    weights = {
        name: torch.from_numpy(np.array(value)).to(kind).requires_grad_(name not in pair.frozen)
        for name, value in pair.weights.items()
    }
    inputs: dict[str, Tensor] = {}
    for name, value in pair.inputs.items():
        tensor = torch.from_numpy(np.array(value))
        inputs[name] = tensor.to(kind) if tensor.is_floating_point() else tensor
        inputs[name].requires_grad_(name in pair.floating())
    watch = Watch(dtype)

    def torch_loss() -> Tensor:
        output = tap("output", pair.torch_call(dtype, weights, inputs))
        return (output * torch.from_numpy(_direction(tuple(output.shape), dtype, real))).sum()

    def jax_loss(moving: tuple[Any, Any], fixed: tuple[Any, Any]) -> Any:
        leaves, given = {**moving[0], **fixed[0]}, {**moving[1], **fixed[1]}
        output = tap("output", pair.jax_call(dtype, leaves, given))
        return (output * _direction(output.shape, dtype, real)).sum()

    free_ours, ways = record(torch_loss, None, real.there, watch, pair.only)
    if exact is None:
        gradients = _gradients(weights, inputs, pair)
    else:
        _forget(weights, inputs)
        seated_ours, _ = record(torch_loss, exact, real.there, None, pair.only)
        gradients = _gradients(weights, inputs, pair)
    with torch.no_grad():
        leaves = {name: value.numpy().copy() for name, value in pair.leaves(weights).items()}
    their_inputs = {name: value.detach().numpy().copy() for name, value in inputs.items()}
    floating = pair.floating()
    moving = leaves, {name: their_inputs[name] for name in floating}
    fixed: tuple[Any, Any] = {}, {name: v for name, v in their_inputs.items() if name not in floating}
    opened = Opened(jax_loss, moving, fixed, names=pair.names, only=pair.only)
    recorder = JaxRecorder(opened, there=real.there, options=QUICKLY)
    free, _ = recorder(moving, fixed)
    layouts = dict(pair.layouts)
    if pair.only is not None:  # modules of two libraries; of a pair's own taps the shapes are compared
        layouts |= _flattened(free_ours, free, layouts)
    seats = laid_out(free_ours if exact is None else exact, layouts)
    forced, their_gradients = recorder(moving, fixed, seats=seats)
    theirs = {ours: name for name, ours in pair.names.items()}
    found = opened.ways(dtype)
    both = {
        name: (ways.get(name, Way()), _way_of(theirs.get(name, name), found))
        for name in merged(ways or free.values, free.values)
    }
    ours = free_ours if exact is None else seated_ours
    ours, on_its_own = laid_out(ours, layouts), laid_out(free_ours, layouts)
    if pair.only is not None:
        _spread(ours, free, forced)
        _spread(on_its_own, Record(dict(free.values)))
    return Look(
        ours, free_ours, on_its_own, free, forced, gradients, _in_torchs_terms(pair, weights, their_gradients), both,
        opened.closed,
    )  # fmt: skip


def _flattened(ours: Record, theirs: Record, known: Mapping[str, Any]) -> dict[str, list[str]]:
    """Taps where one side has rows of tokens and the other tokens in one row: the same numbers in the same order."""
    found = {}
    for name, value in ours.values.items():
        other = theirs.values.get(name)
        if name in known or other is None or not value.shape or not other.shape or value.shape == other.shape:
            continue
        if value.ndim != other.ndim and value.size == other.size and value.shape[-1] == other.shape[-1]:
            found[name] = [f"reshape {' '.join(map(str, other.shape))}"]
    return found


def _spread(ours: Record, *theirs: Record) -> None:
    """Values that one side has once for all rows and the other for each: the same, spread; cotangents summed."""
    for name, value in list(ours.values.items()):
        shapes = [record.values[name].shape for record in theirs if name in record.values]
        if not shapes or shapes[0] == value.shape or len(shapes[0]) != value.ndim:
            continue
        try:
            whole = np.broadcast_shapes(value.shape, shapes[0])
        except ValueError:
            continue
        for side in (ours, *theirs):
            side.values[name] = np.broadcast_to(side.values[name], whole)
            if name in side.cotangents:
                small = tuple(min(a, b) for a, b in zip(value.shape, shapes[0], strict=True))
                axes = tuple(k for k, size in enumerate(side.cotangents[name].shape) if size != small[k])
                side.cotangents[name] = side.cotangents[name].sum(axes, keepdims=True)


def _way_of(name: str, found: Mapping[str, Way]) -> Way:
    """JAX's way to a tap, whose name in a scan has no number."""
    return found.get(name) or found.get(base(name), Way())


def _direction(shape: tuple[int, ...], dtype: str, real: Real) -> np.ndarray:
    """A fixed random projection of an output, 0 where nothing counts."""
    direction = np.random.default_rng(0).standard_normal(shape)
    there = real.there("output", shape)
    return np.asarray(direction if there is None else np.where(there, direction, 0.0), dtype)


def _forget(*groups: Mapping[str, Tensor]) -> None:
    for group in groups:
        for tensor in group.values():
            tensor.grad = None


def _gradients(weights: Mapping[str, Tensor], inputs: Mapping[str, Tensor], pair: Pair) -> dict[str, np.ndarray]:
    named = {n: t for n, t in weights.items() if n not in pair.frozen} | {n: inputs[n] for n in pair.floating()}
    return {
        name: (torch.zeros_like(t) if t.grad is None else t.grad.to_dense()).detach().numpy().copy()
        for name, t in named.items()
    }


def _in_torchs_terms(pair: Pair, weights: Mapping[str, Tensor], gradients: Any) -> dict[str, np.ndarray]:
    """JAX's gradients with respect to torch's tensors: the map carries them back."""
    of_leaves, of_inputs = gradients
    made = {name: np.asarray(value) for name, value in of_inputs.items()}
    names = [name for name in weights if name not in pair.frozen]
    if not names:
        return made
    fresh = {name: value.detach().clone().requires_grad_(name in names) for name, value in weights.items()}
    leaves = {name: leaf for name, leaf in pair.leaves(fresh).items() if leaf.requires_grad}
    upstream = [torch.from_numpy(np.array(of_leaves[name])).to(leaf.dtype) for name, leaf in leaves.items()]
    back = torch.autograd.grad(list(leaves.values()), [fresh[n] for n in names], upstream, allow_unused=True)
    for name, gradient in zip(names, back, strict=True):
        if gradient is not None:  # None: a tensor that JAX doesn't use
            made[name] = gradient.numpy()
    return made


def laid_out(given: Record, layouts: Mapping[str, Sequence[str]]) -> Record:
    """Torch's record in JAX's layouts."""
    if not layouts:
        return given

    def moved(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: carried_out(torch.from_numpy(array), layouts[name], name).numpy() if name in layouts else array
            for name, array in arrays.items()
        }

    return Record(moved(given.values), moved(given.cotangents), given.dtypes, given.parents)


def rows_of(wide: Look, narrow: Look | None, real: Real, apart: frozenset[str] = frozenset()) -> list[Row]:
    """One row for each value, cotangent and gradient, with what was measured as its floor and its cap.

    `narrow` is the look in float32, forced on the same values; `apart` are names of taps that aren't compared.
    """
    ours, free, forced = (real.only(record) for record in (wide.ours, wide.free, wide.forced))
    below = None if narrow is None else (real.only(narrow.ours), real.only(narrow.forced))
    children: dict[str, list[str]] = {}
    for name, parents in ours.parents.items():
        for parent in parents:
            children.setdefault(parent, []).append(name)
    # the loss is a projection, whose terms cancel: not the model's, and no figure of its own
    names = [name for name in merged(ours.values, free.values) if name not in apart and name != LOSS]

    def noise(part: str, name: str) -> float | None:
        if below is None:
            return None
        pairs = ((below[0], ours), (below[1], forced))
        errors = [distance(getattr(low, part).get(name), getattr(high, part).get(name)) for low, high in pairs]
        known = [error for error in errors if np.isfinite(error)]
        return max(known) if known else None

    rows = []
    for name in names:
        widest = wide.ways.get(name, (Way(), Way()))
        cap, floor = allowed(widest, noise("values", name), FORWARD, FORWARD_FLOOR)
        a, b, c = (r.values.get(name) for r in (ours, free, forced))
        note = odd_side(a, c)
        rows.append(Row("forward", name, distance(b, a), distance(c, a), cap, floor, ours.parents.get(name, ()), note))
    for name in reversed([name for name in names if name in ours.cotangents]):
        ways = [way for child in children.get(name, ()) for way in wide.ways.get(child, ())]
        cap, floor = allowed(ways, noise("cotangents", name), COTANGENT, COTANGENT_FLOOR)
        a, b, c = (r.cotangents.get(name) for r in (ours, free, forced))
        rows.append(
            Row("cotangent", name, distance(b, a), distance(c, a), cap, floor, tuple(children.get(name, ())),
                odd_side(a, c))
        )  # fmt: skip
    every = [way for ways in wide.ways.values() for way in ways]
    largest = max((float(np.linalg.norm(value)) for value in wide.our_gradients.values()), default=0.0)
    for name, value in wide.our_gradients.items():
        other = wide.their_gradients.get(name)
        small = NOISE if not any(way.narrow for way in every) else 1e-6
        sizes = [float(np.linalg.norm(one)) for one in (value, other) if one is not None]
        if np.isfinite(sizes).all() and (not any(sizes) or (other is not None and max(sizes) < small * largest)):
            continue  # used by neither; or rounding alone, on both sides
        noises = None
        if narrow is not None:
            sides = (narrow.our_gradients, wide.our_gradients), (narrow.their_gradients, wide.their_gradients)
            found = [distance(low.get(name), high.get(name)) for low, high in sides]
            noises = max((one for one in found if np.isfinite(one)), default=None)
        cap, floor = allowed(every, noises, GRADIENT, GRADIENT_FLOOR)
        rows.append(Row("gradient", name, None, distance(other, value), cap, floor, (), odd_side(value, other)))
    return rows


def allowed(ways: Sequence[Way], noise: float | None, cap: float, floor: float) -> tuple[float, float]:
    """(cap, floor) of a figure that came these ways, float32's rounding there being `noise` (None: not measured)."""
    narrow = max((way.narrow for way in ways if way.narrow), key=lambda name: LEAST.get(name, 1.0), default="")
    if narrow:
        least = LEAST.get(narrow, LEAST["bfloat16"])
        measured = max(least, (noise or 0.0) * least / LEAST["float32"])
        return max(cap, min(ISLAND * measured, MOST)), measured
    expected = (noise or 0.0) * NARROW_TO_WIDE
    return max(cap, min(expected, MOST)), max(floor, expected / 30)


def met(pair: Pair) -> tuple[list[str], list[str], dict[str, str]]:
    """Taps that each side calls, torch's and JAX's, by torch's names; and those of JAX that can't be reached."""
    ours, names, theirs = [], Names(), []
    found: Any = {}
    weights = {n: torch.from_numpy(np.array(v)).double() for n, v in pair.weights.items()}
    inputs = {n: torch.from_numpy(np.array(v)) for n, v in pair.inputs.items()}
    inputs = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}

    def see(name: str, value: Any) -> Any:
        ours.append(names(name))
        return value

    def note(name: str, value: Any) -> Any:
        theirs.append(name)
        return value

    with torch.no_grad(), tapped(see):
        pair.torch_call("float64", weights, inputs)
    found["leaves"] = {name: value.numpy() for name, value in pair.leaves(weights).items()}
    found["inputs"] = {name: value.numpy() for name, value in inputs.items()}
    opened = Opened(lambda given: pair.jax_call("float64", given["leaves"], given["inputs"]), found, names=pair.names)
    with tapped(note):
        jax.eval_shape(opened, found)
    return ours, theirs, opened.closed


def check_taps(ours: Record, theirs: Record) -> None:
    """Raise `UserError` where JAX has no tap at all, and torch has."""
    own = {"output", "loss"}
    if ours.values.keys() - own and not theirs.values.keys() - own:
        raise UserError(
            "parity/jax-without-taps",
            "torch has taps and JAX has none: call coretrain.contract.taps.tap at the same places of the JAX function",
        )

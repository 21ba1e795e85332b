"""What a converter did to each tensor, in steps: from where in torch each element of a JAX leaf comes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from parity.pairs.jax_side import dotted
from parity.pairs.mapping import Entry
from parity.pairs.steps import carried_out

BASE = 128
"""Places are sent as digits below this: whole numbers that bfloat16 holds too."""
Converter = Callable[[dict[str, Any]], Any]
"""From a state dict of torch tensors by name to a tree of JAX leaves."""


def by_converter(
    convert: Converter, shapes: Mapping[str, tuple[int, ...]], leaves: Mapping[str, Any]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """(an entry for each of JAX's leaves, the reason for each torch tensor that none of them has).

    The converter is called with arrays in place of weights: zeros, ones, and the places of the elements, digit by
    digit. `shapes` are those of torch's tensors; the leaves that come back must be among `leaves`.
    """
    starts, total = {}, 0
    for name, shape in shapes.items():
        starts[name] = total
        total += math.prod(shape)
    digits = max(1, math.ceil(math.log(max(total, 2), BASE)))

    def sent(value: Callable[[str, tuple[int, ...]], np.ndarray]) -> dict[str, np.ndarray]:
        state = {name: torch.from_numpy(value(name, shape)) for name, shape in shapes.items()}
        return _by_path(convert(state), leaves)

    nothing = sent(lambda name, shape: np.zeros(shape, np.float32))
    ones = sent(lambda name, shape: np.ones(shape, np.float32))
    places = {name: np.zeros(np.shape(value), np.int64) for name, value in nothing.items()}
    for k in range(digits):

        def digit(name: str, shape: tuple[int, ...], k: int = k) -> np.ndarray:
            numbers = np.arange(starts[name], starts[name] + math.prod(shape)).reshape(shape)
            return ((numbers // BASE**k) % BASE).astype(np.float32)

        for name, value in sent(digit).items():
            with np.errstate(all="ignore"):
                read = (value - nothing[name]) / (ones[name] - nothing[name])
            places[name] += np.where(np.isfinite(read), np.rint(read), -1).astype(np.int64) * BASE**k
    entries: dict[str, Entry] = {}
    for leaf, where in places.items():
        factor, added = _affine(leaf, ones[leaf], nothing[leaf])
        entry = _entry(leaf, where, starts, shapes)
        then = [*entry.then, *([f"scale {factor:g}"] if factor != 1 else []), *([f"add {added:g}"] if added else [])]
        entries[leaf] = Entry(entry.torch, entry.steps, entry.join, tuple(then))
    rng = np.random.default_rng(0)
    numbers = {name: rng.integers(0, BASE, shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = {name: torch.from_numpy(value) for name, value in numbers.items()}
    for leaf, value in sent(lambda name, shape: numbers[name]).items():  # a sum looks like a scale until here
        if not np.allclose(entries[leaf].made(tensors, leaf).numpy(), value, 1e-2, 1e-2):
            raise _not_a_map(leaf)
    used = {name for entry in entries.values() for name in entry.torch}
    return entries, {name: "the converter uses nothing of it" for name in shapes if name not in used}


def _by_path(tree: Any, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    import jax

    made = {dotted(path): np.asarray(leaf, np.float64) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    made = {name.removeprefix("params."): value for name, value in made.items()}
    if leaves and not any(name in leaves for name in made):
        raise UserError(
            "parity/converter-names-differ",
            f"the converter makes leaves like {shown(next(iter(made), ''))}, the JAX model has "
            f"{shown(next(iter(leaves)))}: give a converter whose tree is that of the model",
        )
    return {name: value for name, value in made.items() if not leaves or name in leaves}


def _affine(leaf: str, ones: np.ndarray, nothing: np.ndarray) -> tuple[float, float]:
    factors, added = np.unique(ones - nothing), np.unique(nothing)
    if len(factors) != 1 or len(added) != 1 or factors[0] == 0:
        raise _not_a_map(leaf)
    return float(factors[0]), float(added[0])


def _not_a_map(leaf: str) -> UserError:
    return UserError(
        "parity/converter-not-a-map",
        f"the converter makes {shown(leaf)} by more than moving, scaling and adding (a sum of tensors, or numbers of "
        "its own): write its row in the map by hand",
    )


def _entry(leaf: str, places: np.ndarray, starts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> Entry:
    names = [name for name in shapes if math.prod(shapes[name])]
    edges = np.array([starts[name] for name in names])
    source = np.searchsorted(edges, places, "right") - 1
    found = list(dict.fromkeys(source.ravel().tolist()))
    if places.size == 0 or min(found) < 0:
        raise _unknown(leaf)
    if len(found) == 1:
        name = names[found[0]]
        return Entry((name,), (tuple(steps_of(places - starts[name], shapes[name], leaf)),))
    for axis in range(places.ndim):
        first = np.moveaxis(source, axis, 0).reshape(places.shape[axis], -1)
        if not (first == first[:, :1]).all():
            continue
        column = first[:, 0]
        cuts = [0, *(np.flatnonzero(np.diff(column)) + 1).tolist(), len(column)]
        order = [int(column[cut]) for cut in cuts[:-1]]
        if len(set(order)) != len(order):
            continue
        parts = [np.take(places, range(a, b), axis) for a, b in itertools.pairwise(cuts)]
        join = f"concat {axis}"
        if all(part.shape[axis] == 1 for part in parts):
            parts, join = [part.squeeze(axis) for part in parts], f"stack {axis}"
        own = [
            tuple(steps_of(part - starts[names[at]], shapes[names[at]], leaf))
            for part, at in zip(parts, order, strict=True)
        ]
        return Entry(tuple(names[at] for at in order), (own[0],) if len(set(own)) == 1 else tuple(own), join)
    raise _unknown(leaf)


def _unknown(leaf: str) -> UserError:
    return UserError(
        "parity/converter-not-understood",
        f"the converter's order of the elements of {shown(leaf)} is no transpose, reshape, slice, flip or join: write "
        "its row in the map by hand",
    )


def steps_of(places: np.ndarray, shape: Sequence[int], leaf: str = "the leaf") -> list[str]:
    """Steps that make, of a tensor of this shape, an array of the elements at these (flat) places, in their shape."""
    if places.shape == tuple(shape) and (places.ravel() == np.arange(places.size)).all():
        return []
    start = int(places.flat[0])
    fine: list[int] = []  # the leaf's axes, cut where their order in torch changes
    strides: list[int] = []
    for axis, size in enumerate(places.shape):
        line = places[tuple(slice(None) if k == axis else 0 for k in range(places.ndim))] - start
        for count, stride in _digits(line, size):
            fine.append(count)
            strides.append(stride)
    moving = [k for k in range(len(fine)) if fine[k] > 1]
    if any(strides[k] == 0 for k in moving):
        raise _unknown(leaf)
    order = sorted(moving, key=lambda k: -abs(strides[k]))
    total = math.prod(shape)
    corner = start + sum((fine[k] - 1) * strides[k] for k in moving if strides[k] < 0)
    grid, cuts, below = [], [], total
    for k in order:
        step = abs(strides[k])
        if below % step:
            raise _unknown(leaf)
        grid.append(below // step)
        cuts.append((corner // step, fine[k]))
        corner, below = corner % step, step
    if below > 1:
        grid.append(below)
        cuts.append((corner, 1))
    steps = [f"reshape {_words(grid)}"] if grid != list(shape) else []
    steps += [
        f"slice {axis} {low} {low + count}" for axis, (low, count) in enumerate(cuts) if (low, count) != (0, grid[axis])
    ]
    kept = [fine[k] for k in order]
    if below > 1:
        steps.append(f"reshape {_words(kept)}")
    back = [order.index(k) for k in moving]
    if back != sorted(back):
        steps.append(f"transpose {_words(back)}")
    flips = [at for at, k in enumerate(moving) if strides[k] < 0]
    steps += [f"flip {_words(flips)}"] if flips else []
    if tuple(fine[k] for k in moving) != places.shape:
        steps.append(f"reshape {_words(places.shape)}")
    tried = carried_out(torch.arange(total).reshape(tuple(shape)), steps, leaf).numpy()
    if tried.shape != places.shape or not (tried == places).all():
        raise _unknown(leaf)
    return _in_parts(steps, grid)


def _in_parts(steps: list[str], grid: Sequence[int]) -> list[str]:
    """Slices that are one of equal parts, as `split`."""
    made = []
    for step in steps:
        word, *rest = step.split()
        if word == "slice":
            axis, low, high = map(int, rest)
            size = high - low
            if size > 1 and grid[axis] % size == 0 and low % size == 0:
                step = f"split {axis} {grid[axis] // size} {low // size}"
        made.append(step)
    return made


def _digits(line: np.ndarray, size: int) -> list[tuple[int, int]]:
    """An axis as (count, stride) of axes that it is made of, the outermost first."""
    if size == 1:
        return [(1, 0)]
    stride = int(line[1])
    count = 1
    while count < size and line[count] == count * stride:
        count += 1
    if count == size:
        return [(size, stride)]
    if size % count:
        return [(size, stride)]  # not regular: what is made of it is found wrong
    return [*_digits(line[::count], size // count), (count, stride)]


def _words(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))

"""Canonical tensors in and out of jaxtrain's arrays, one at a time: no host ever holds a whole model besides its own
devices' shards.

This file has no twin: torch's parameters are the canonical tensors, here they lie stacked, transposed and sharded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from coretrain.base.arrays import Tensors
from coretrain.base.lazy import LazyTensors
from coretrain.config.model import ModelConfig
from coretrain.contract.parameters import (
    Parameter,
    check_rows,
    initial_value,
    pad_vocab,
    parameter_table,
)


def initial_tensors(model: ModelConfig, seed: int) -> LazyTensors:
    """Every parameter's float32 start, as coretrain.contract.parameters.initial_parameters has them."""
    rows = {row.name: row for row in parameter_table(model)}
    return LazyTensors(rows, lambda name: initial_value(rows[name], seed))


def exported(table: Sequence[Parameter], paths: Iterable[str], read: Callable[[str], Any]) -> LazyTensors:
    """Canonical tensors of `table`, without padding, of arrays by dotted path, of which `read` gives one, whole.

    In the order of the paths: the layers that lie in one array follow each other, and it is read once.
    """
    held: dict[str, np.ndarray] = {}

    def array(path: str) -> np.ndarray:
        if path not in held:
            held.clear()
            held[path] = np.asarray(read(path))
        return held[path]

    def tensor(name: str) -> np.ndarray:
        row = rows[name]
        value = array(row.jax_path)
        if row.layer is not None:
            value = value[row.layer]
        elif row.axes[0] == "vocab":
            value = value[: row.shape[0]]
        return np.array(value.T if row.transposed else value, order="C")

    by_path = _by_path(table)
    rows = {row.name: row for path in paths for row in by_path[path]}
    return LazyTensors(rows, tensor)


def exported_tree(table: Sequence[Parameter], tree: Any) -> LazyTensors:
    """As `exported`, of a tree of arrays."""
    leaves = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return exported(table, leaves, leaves.__getitem__)


def placed(
    table: Sequence[Parameter], templates: Mapping[str, jax.ShapeDtypeStruct], tensors: Tensors, multiple: int
) -> dict[str, Array]:
    """Arrays of these shapes, dtypes and shardings by dotted path, made of canonical tensors; zeros where one lacks.

    The vocabulary is padded to `multiple`. Only this process's shards are made, from one tensor at a time.
    """
    names = frozenset(tensors)  # asking a lazy mapping whether it has one may read it
    by_path = {path: [row for row in rows if row.name in names] for path, rows in _by_path(table).items()}
    return {path: _placed(by_path[path], template, tensors, multiple) for path, template in templates.items()}


def placed_tree(table: Sequence[Parameter], form: Any, tensors: Tensors, multiple: int) -> Any:
    """As `placed`, of a tree of shapes, dtypes and shardings. Raises `UserError` where a tensor lacks or is another."""
    check_rows(table, tensors, "the parameters")
    flat = {dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(form)}
    arrays = placed(table, flat, tensors, multiple)
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[dotted(path)], form)


def dotted(path: Any) -> str:
    """The table's `jax_path` of a leaf, from its path in a tree of the parameters' form."""
    return ".".join(str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))


def _placed(rows: list[Parameter], template: jax.ShapeDtypeStruct, tensors: Tensors, multiple: int) -> Array:
    shape, sharding = template.shape, template.sharding
    places = {_bounds(i, shape): i for i in sharding.addressable_devices_indices_map(shape).values()}
    parts = {bounds: np.zeros([stop - start for start, stop in bounds], template.dtype) for bounds in places}
    for row in rows:
        value = np.asarray(tensors[row.name])
        value = pad_vocab(row, value.T if row.transposed else value, multiple)
        for bounds, part in parts.items():
            if row.layer is None:
                part[...] = value[places[bounds]]
            elif bounds[0][0] <= row.layer < bounds[0][1]:
                part[row.layer - bounds[0][0]] = value[places[bounds][1:]]
    return jax.make_array_from_callback(shape, sharding, lambda index: parts[_bounds(index, shape)])


def _by_path(table: Sequence[Parameter]) -> dict[str, list[Parameter]]:
    found: dict[str, list[Parameter]] = {}
    for row in table:
        found.setdefault(row.jax_path, []).append(row)
    return found


def _bounds(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    assert index is not None  # JAX's types allow it, for devices that aren't addressable; its code asserts the same
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))

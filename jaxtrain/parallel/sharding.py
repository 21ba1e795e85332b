"""Where each array of a run lies on a mesh of devices: the table's logical axes, the mesh's, and the rules for them.

This file has no twin: a JAX program is written for whole arrays and the compiler divides it by what is said here;
torch divides the modules themselves (`Axis` in torchtrain/parallel/axes.py, and who takes one).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from coretrain.adapters.targets import adapter_parameters, all_parameters
from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.processes.layout import Layout
from jaxtrain.wide import Sums, over_tokens

FSDP = ("fsdp", "fsdp_y", "fsdp_z")
"""The devices of `parallel.fsdp`, by the axes of a TPU's torus that they lie along; elsewhere all are on the first."""
AXES = ("stage", "data", *FSDP, "context", "tensor")
"""Of every mesh, the slowest first: tensor's devices talk most and lie next to each other."""
MeshAxes = tuple[str, ...]


@dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes share each logical axis of a parameter (the table's names) or of an activation (batch, time)."""

    vocab: MeshAxes = ("tensor",)
    position: MeshAxes = ()
    width: MeshAxes = FSDP
    heads: MeshAxes = ("tensor",)
    kv_heads: MeshAxes = ("tensor",)
    hidden: MeshAxes = ("tensor",)
    layers: MeshAxes = ("stage",)
    batch: MeshAxes = ("data", *FSDP)
    time: MeshAxes = ("context",)

    def spec(self, axes: Sequence[str | None], without: MeshAxes = ()) -> P:
        """How an array of these logical axes (None: not shared) is split, leaving out the mesh axes `without`.

        Raises `UserError` where one mesh axis would split two of them.
        """
        split = [tuple(n for n in getattr(self, axis) if n not in without) if axis else () for axis in axes]
        used = [name for names in split for name in names]
        if twice := sorted({name for name in used if used.count(name) > 1}):
            raise UserError(
                "jax/mesh-axis-used-twice",
                f"the sharding rules split two axes of ({', '.join(map(str, axes))}) over the mesh axis {twice[0]}: "
                "give one of them another mesh axis, or none",
            )
        return P(*(names or None for names in split))

    def __str__(self) -> str:
        return ", ".join(
            f"{f.name} by {' x '.join(getattr(self, f.name))}" for f in fields(self) if getattr(self, f.name)
        )


@functools.cache
def jax_axes(config: RunConfig) -> Mapping[str, tuple[str | None, ...]]:
    """Logical axes of every parameter as jaxtrain holds it, by dotted path.

    A vector's width is not shared, nor is a score head's or an adapter: too small to be worth gathering.
    """
    found: dict[str, tuple[str | None, ...]] = {}
    adapter = {row.jax_path for row in adapter_parameters(config)}
    for row in all_parameters(config):
        axes: tuple[str | None, ...] = tuple(reversed(row.axes)) if row.transposed else row.axes
        if axes in (("width",), ("score", "width")) or row.jax_path in adapter:
            axes = (None,) * len(axes)
        found[row.jax_path] = axes if row.layer is None else ("layers", *axes)
    return found


@dataclass(frozen=True)
class Sharding:
    """A model's arrays on a mesh. Modules hold one (None: one device, where nothing is to be said to the compiler)."""

    mesh: Mesh
    config: RunConfig
    rules: ShardingRules = ShardingRules()

    def size(self, *axes: str) -> int:
        """Devices along mesh axes, together."""
        return int(np.prod([self.mesh.shape[axis] for axis in axes], dtype=int))

    def split(self, axis: str) -> MeshAxes:
        """The mesh axes, of more than one device, that share a logical axis."""
        return tuple(name for name in getattr(self.rules, axis) if self.mesh.shape[name] > 1)

    def named(self, *axes: str | None, without: MeshAxes = ()) -> NamedSharding:
        """The sharding of an array with these logical axes."""
        return NamedSharding(self.mesh, self.rules.spec(axes, without))

    def parameter(self, path: str) -> NamedSharding:
        """Where a parameter, its gradient and its moments lie."""
        return self.named(*self._axes(path))

    def _axes(self, path: str) -> tuple[str | None, ...]:
        return jax_axes(self.config).get(path, ("layers",))  # else a base's bytes, which all devices have

    def tokens(self, axes: int, features: int = 0) -> NamedSharding:
        """Of an array [..., B, T] with so many `axes`, then `features` more: its rows and tokens are shared."""
        return self.named(*(None,) * (axes - 2), "batch", "time", *(None,) * features)

    def rows(self, x: Array) -> Array:
        """Activations [..., B, T, D] at their place."""
        return jax.lax.with_sharding_constraint(x, self.tokens(x.ndim - 1, 1))

    def in_use(self, path: str, leaf: Array, dtype: jnp.dtype) -> Array:
        """A parameter (one layer of a stacked one) as a matmul uses it: whole along fsdp, rounded to the compute dtype.

        The result's dtype is the one in which its gradient is summed over the devices (`parallel.gradient_sum`), on the
        way back to the shards.
        """
        axes = self._axes(path)
        axes = axes[1:] if axes[0] == "layers" else axes
        if self.rules.spec(axes) == self.rules.spec(axes, FSDP):  # a vector's, an adapter's
            return leaf
        if path == "embed.position":  # which is added to the token's embedding before that is cast
            dtype = leaf.dtype
        summed = dtype if self.config.parallel.gradient_sum == "compute" else leaf.dtype
        if self.size(*FSDP) == 1:
            return leaf.astype(summed)
        split = self.split("width")
        gathered = (split[1:], split) if len(split) > 2 else (split,)
        front = ("width", *(axis for axis in axes if axis != "width"))
        first = len(split) if self._sums_apart(path) else 1  # then it comes at its place
        way = Way(
            tuple(self.named(*axes, without=done) for done in gathered),
            self.named(*axes),
            axes.index("width"),
            tuple(self.named(*front, without=split[done:]) for done in range(first, len(split) + 1)),
        )
        return _gather(leaf, dtype, summed, way)

    def in_use_after(self, path: str, before: tuple[Array, ...], leaf: Array) -> tuple[tuple[Array, ...], Array]:
        """`before` (a matmul's input first), and `in_use` of the matrix that the input is multiplied by.

        On the way back the matrix' gradient goes to its shards before those of `before` go on: else a TPU's compiler
        keeps all of a layer's gradients whole to the layer's end.
        """
        if self.size(*FSDP) > 1 and self.config.adapter.kind == "none":  # a frozen matrix has none
            before, leaf = _together(before, leaf)
        return before, self.in_use(path, leaf, before[0].dtype)

    def sums(self, path: str) -> Sums | None:
        """How the gradient of a block's matrix is summed over tokens, where three axes of a torus share them."""
        if not self._sums_apart(path):
            return None
        axes = self._axes(path)[1:]
        rows, time, part = self.rules.batch, self.rules.time, self.named("width", *(a for a in axes if a != "width"))
        return AxisByAxis(
            (self.size(*rows), self.size(*time)),
            NamedSharding(self.mesh, P(rows, None, time, None, P.UNCONSTRAINED)),
            NamedSharding(self.mesh, P(rows, time, None, part.spec[1])),
            part,
            axes.index("width"),
            self.split("width"),
            tuple(axis for axis in self.token_axes if axis not in self.split("width")),
        )

    def _sums_apart(self, path: str) -> bool:
        torus = len(self.split("width")) > 2 and self.size("stage") == 1
        return torus and path.startswith("blocks.") and self.config.adapter.kind == "none"

    @property
    def token_axes(self) -> MeshAxes:
        """The mesh axes that share an update's tokens."""
        return (*self.rules.batch, *self.rules.time)

    @property
    def copies(self) -> P:
        """How a matrix [n, V, D] of `own_copies` is split: a copy for each share of the tokens."""
        return P(self.token_axes, self.split("vocab") or None, None)

    def own_copies(self, table: Array) -> Array:
        """A tied embedding [V, D] as [n, V, D], one for each of the n shares of an update's tokens, where it lies.

        Both of its uses then add to a device's own gradient, and those are summed over the devices once, not for each
        use. Along fsdp it stays as it is: a gathered table would be kept from its first use to its last.
        """
        if self.size(*FSDP) > 1 or self.size("stage") > 1 or self.size(*self.token_axes) == 1:
            return table
        whole = P(self.copies[1], None)
        spread = functools.partial(jax.shard_map, mesh=self.mesh, in_specs=whole, out_specs=self.copies)
        # the sum over devices is what shard_map makes of a gradient that comes back to an array they all have
        return spread(lambda part: jax.lax.pcast(part, self.token_axes, to="varying")[None])(table)

    def put(self, host: np.ndarray, *axes: str | None) -> Array:
        """An array that every process has whole, as a global one of which each device gets its part."""
        return jax.make_array_from_callback(host.shape, self.named(*axes), lambda index: host[index])


class Way(NamedTuple):
    """Of one parameter from its shards to the whole along fsdp, and of its gradient back."""

    gathered: tuple[NamedSharding, ...]
    """To the whole; over three axes of a torus not at once, which a TPU's compiler would make an all-reduce."""
    part: NamedSharding
    width: int
    """The axis that is shared."""
    scattered: tuple[NamedSharding, ...]
    """Of the gradient with that axis in front, one axis of the torus after another: over two at once, or where what is
    left of the last axis isn't a tile, a TPU's compiler makes an all-reduce and a cut, which send twice as much."""


@dataclass(frozen=True)
class AxisByAxis:
    """How a matrix' gradient is summed over the three axes of a torus that share the tokens: over one after another.

    A sharding can't say that a sum is made in part: after that over the first axis the compiler makes all others at
    once, as all-reduces. So each device has a gradient of its own tokens first.
    """

    devices: tuple[int, int]
    """That share rows, and that share a row's tokens."""
    tokens: NamedSharding
    """Of activations [devices, rows of a device, devices, tokens of a device, features]."""
    own: NamedSharding
    """Of the devices' own gradients [devices, devices, width, features]."""
    part: NamedSharding
    """Of their sum [width, features]."""
    width: int
    """The matrix' axis that is shared."""
    split: MeshAxes
    """The mesh axes that share it."""
    others: MeshAxes
    """Those that share tokens alone."""

    def __call__(self, x: Array, y: Array, dtype: jnp.dtype) -> Array:
        """The sum over tokens of x [B, T, a] times y [B, T, b], at its place."""
        (B, T), (rows, time) = x.shape[:2], self.devices
        cut = [each.reshape(rows, B // rows, time, T // time, -1) for each in (x, y)]
        x, y = (jax.lax.with_sharding_constraint(each, self.tokens) for each in cut)
        own = over_tokens(*((x, y) if self.width == 0 else (y, x)), dtype, apart=(0, 2))
        mesh, given, made = self.own.mesh, self.own.spec, self.part.spec
        summed = jax.shard_map(self._summed, mesh=mesh, in_specs=given, out_specs=made, check_vma=False)
        return jnp.moveaxis(summed(own), 0, self.width)

    def _summed(self, own: Array) -> Array:
        part = own[0, 0]
        for axis in self.split:
            part = jax.lax.psum_scatter(part, axis, scatter_dimension=0, tiled=True)
        return jax.lax.psum(part, self.others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(leaf: Array, dtype: jnp.dtype, summed: jnp.dtype, way: Way) -> Array:
    whole = leaf.astype(dtype)  # first: half the bytes to gather
    for place in way.gathered:
        whole = jax.lax.with_sharding_constraint(whole, place)
    return whole.astype(summed)


def _gather_forward(leaf: Array, dtype: jnp.dtype, summed: jnp.dtype, way: Way) -> tuple[Array, Array]:
    return _gather(leaf, dtype, summed, way), jnp.zeros((), leaf.dtype)


def _gather_backward(dtype: jnp.dtype, summed: jnp.dtype, way: Way, master: Array, gradient: Array) -> tuple[Array]:
    gradient = jnp.moveaxis(gradient, way.width, 0)
    for place in way.scattered:
        gradient = jax.lax.with_sharding_constraint(gradient, place)
    gradient = jax.lax.with_sharding_constraint(jnp.moveaxis(gradient, 0, way.width), way.part)
    return (gradient.astype(master.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


@jax.custom_vjp
def _together(before: tuple[Array, ...], leaf: Array) -> tuple[tuple[Array, ...], Array]:
    return before, leaf


def _together_forward(before: tuple[Array, ...], leaf: Array) -> tuple[tuple[tuple[Array, ...], Array], None]:
    return (before, leaf), None


def _together_backward(_: None, gradients: tuple[tuple[Array, ...], Array]) -> tuple[tuple[Array, ...], Array]:
    return jax.lax.optimization_barrier(gradients)


_together.defvjp(_together_forward, _together_backward)


def make_mesh(layout: Layout, devices: Sequence[jax.Device]) -> Mesh:
    """The mesh of `devices` that `layout` describes, with all of `AXES`, neighbours chosen by the machine's wiring."""
    shape = (layout.pipeline, layout.data, layout.fsdp, layout.context, layout.tensor)
    names = tuple(axis for axis in AXES if axis not in FSDP[1:])
    placed = jax.make_mesh(shape, names, devices=devices).devices
    split = torus_split(list(placed[0, 0, :, 0, 0]))
    longest = sorted(range(3), key=lambda axis: -split[axis])  # the first sum leaves least for the others
    order = (0, 1, *(2 + axis for axis in longest), 5, 6)
    devices_by_axis = placed.reshape(*shape[:2], *split, *shape[3:]).transpose(order)
    return Mesh(devices_by_axis, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def torus_split(line: Sequence[jax.Device]) -> tuple[int, int, int]:
    """How many of these devices lie along each axis of a TPU's torus, the slowest first: their product is their number.

    (n, 1, 1) where they lie along one axis, or in no regular order, or in no torus.
    """
    count = len(line)
    places = np.array([getattr(device, "coords", ()) for device in line]).reshape(count, -1)
    several = [axis for axis in range(places.shape[1]) if len(np.unique(places[:, axis])) > 1]
    for order in itertools.permutations(several):
        sizes = [len(np.unique(places[:, axis])) for axis in order]
        if len(order) > len(FSDP) or np.prod(sizes) != count:
            break
        grid = places.reshape(*sizes, -1)
        others = [tuple(i for i in range(len(order)) if i != at) for at in range(len(order))]
        if all(np.all(np.ptp(grid[..., axis], axis=rest) == 0) for axis, rest in zip(order, others, strict=True)):
            first, second, third = (*sizes, 1, 1, 1)[:3]
            return int(first), int(second), int(third)
    return count, 1, 1

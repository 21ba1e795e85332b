"""Values and cotangents at the taps of a torch and of a JAX computation, on its own or JAX teacher-forced on torch's.

Teacher-forced: every tap of JAX, once recorded, goes on with torch's value (its seat), and so does its cotangent on
the way back. An error is then seen only in the segment that makes it, not in everything that follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from torch import Tensor, nn

from coretrain.base.errors import UserError
from coretrain.contract.taps import tap, tapped

LOSS = "loss"
"""Name of the scalar that is differentiated: the last value, and the first cotangent."""


@dataclass
class Record:
    """What was seen at the taps, in order: the last value is the loss. Narrow dtypes are widened to float32."""

    values: dict[str, np.ndarray] = field(default_factory=dict)
    cotangents: dict[str, np.ndarray] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Taps that a tap is directly made of: known from torch's graph."""


class Names:
    """Full names: `#` becomes how often the name was seen before; a name without it must come once."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        count = self.seen[name]
        self.seen[name] += 1
        if count and "#" not in name:
            raise UserError(
                "parity/tap-met-twice",
                f"the tap {name} is met twice: put # into its name, which is replaced by 0, 1, 2, ...",
            )
        return name.replace("#", str(count))


def record_torch(loss: Callable[[], Tensor]) -> Record:
    """Run `loss`, which makes a scalar and calls `tap` on its way, and its backward pass; gradients lie in `.grad`."""
    record, names = Record(), Names()
    nodes: dict[str, Any] = {}

    def see(name: str, value: Tensor) -> Tensor:
        name = names(name)
        record.values[name] = numpy_of(value)
        record.dtypes[name] = str(value.dtype).removeprefix("torch.")
        if not value.requires_grad:
            return value
        value = value.view_as(value)  # a node of its own, also where two taps see one tensor
        nodes[name] = value.grad_fn

        def keep(cotangent: Tensor) -> None:
            record.cotangents[name] = numpy_of(cotangent)

        value.register_hook(keep)
        return value

    with tapped(see):
        result = loss()
        see(LOSS, result).backward()
    record.parents = parents_of(nodes)
    return record


def numpy_of(value: Tensor) -> np.ndarray:
    """A tensor as numpy; narrow dtypes are widened to float32."""
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy().copy()


def parents_of(nodes: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Of each node of a graph, by name, the nearest nodes among the others that it is made of."""
    owner = {node: name for name, node in nodes.items()}
    found: dict[str, tuple[str, ...]] = {}
    for name, node in nodes.items():
        parents, seen, stack = set(), set(), [after for after, _ in node.next_functions]
        while stack:
            node = stack.pop()
            if node in owner:
                parents.add(owner[node])
            elif node is not None and node not in seen:
                seen.add(node)
                stack += [after for after, _ in node.next_functions]
        found[name] = tuple(other for other in nodes if other in parents)
    return found


@contextmanager
def hooked(modules: Mapping[nn.Module, str]) -> Iterator[None]:
    """For a torch model that calls no `tap`: within, the output of each module is tapped under the name beside it.

    Of an output that is a tuple the first part counts.
    """

    def hook(name: str) -> Callable[..., Any]:
        def after(module: nn.Module, args: Any, output: Any) -> Any:
            return (tap(name, output[0]), *output[1:]) if isinstance(output, tuple) else tap(name, output)

        return after

    handles = [module.register_forward_hook(hook(name)) for module, name in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@jax.custom_vjp
def _seat(value: Array, seat: Array, cotangent: Array, teacher_forced: Array, probe: Array) -> Array:
    """`value`, or `seat` where forced. The probe's gradient is the cotangent; what goes on to `value` is its seat's."""
    return jnp.where(teacher_forced, seat, value)


def _seat_forward(
    value: Array, seat: Array, cotangent: Array, teacher_forced: Array, probe: Array
) -> tuple[Array, Any]:
    return jnp.where(teacher_forced, seat, value), (cotangent, teacher_forced)


def _seat_backward(saved: Any, upstream: Array) -> tuple[Array | None, ...]:
    cotangent, teacher_forced = saved
    return jnp.where(teacher_forced, cotangent, upstream), None, None, None, upstream


_seat.defvjp(_seat_forward, _seat_backward)
INNER = (
    "a tap of the JAX function lies inside jax.jit, jax.checkpoint, scan or vmap: localize the code without them, with "
    "its loops unrolled"
)


class JaxRecorder:
    """`loss(params, *rest)`, a scalar in JAX that calls `tap` on its way: compiled once, run free or teacher-forced.

    Taps must not lie inside jit, scan, vmap or jax.checkpoint: their values belong to that inner trace, so that
    these are refused. `forget`: JAX's caches are cleared before tracing, or what was traced before would call no tap.
    `there`: which elements of a tap are forced (None: all that are numbers on torch's side). `options` are XLA's.
    """

    def __init__(
        self,
        loss: Callable[..., Array],
        forget: bool = False,
        there: Callable[[str, tuple[int, ...]], np.ndarray | None] = lambda name, shape: None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.loss, self.forget, self.there = loss, forget, there
        self._compiled = jax.jit(self._run, compiler_options=None if options is None else dict(options))

    def __call__(self, params: Any, *rest: Any, seats: Record | None = None) -> tuple[Record, Any]:
        """The record, and the gradients with respect to `params`. `seats` is torch's record: with it, teacher-forced.

        A tap that torch lacks, or has in another shape, stays free.
        """
        try:
            return self._record(params, rest, seats or Record())
        except jax.errors.UnexpectedTracerError:
            raise UserError("parity/model-call-failed", INNER) from None

    def _record(self, params: Any, rest: tuple[Any, ...], seats: Record) -> tuple[Record, Any]:
        shapes = jax.eval_shape(self._shapes, params, *rest)

        def seat(source: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {
                name: np.asarray(source[name] if self._fits(source, name, s) else np.zeros(s.shape), s.dtype)
                for name, s in shapes.items()
            }

        flags = {name: self._forced(seats, name, s) for name, s in shapes.items()}
        probes = {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items()}  # jnp.zeros is compiled
        values, cotangents, gradients = self._compiled(
            params, probes, rest, seat(seats.values), seat(seats.cotangents), flags
        )
        if lost := shapes.keys() ^ values.keys() or shapes.keys() - cotangents.keys():
            raise UserError("parity/run-not-recorded", f"{INNER} ({', '.join(sorted(lost))})")
        record = Record(dtypes={name: str(shapes[name].dtype) for name in values})
        record.values = {name: _widened(value) for name, value in values.items()}
        record.cotangents = {name: _widened(value) for name, value in cotangents.items()}
        # a jitted function's dictionaries come back sorted by name
        order = [name for name in self._order if name in record.values]
        parts: tuple[dict[str, Any], ...] = (record.values, record.cotangents, record.dtypes)
        for part in parts:
            part.update({name: part.pop(name) for name in order})
        return record, gradients

    def _forget(self) -> None:
        if self.forget:
            jax.clear_caches()

    def _forced(self, seats: Record, name: str, shape: Any) -> np.ndarray:
        """Elements of a tap that go on with the seat: a NaN of torch's would be seen in all that follows."""
        if not (self._fits(seats.values, name, shape) and self._fits(seats.cotangents, name, shape)):
            return np.zeros(shape.shape, bool)
        numbers = ~np.isnan(seats.values[name]) & np.isfinite(seats.cotangents[name])
        there = self.there(name, shape.shape)
        return numbers if there is None else numbers & there

    @staticmethod
    def _fits(source: Mapping[str, np.ndarray], name: str, shape: Any) -> bool:
        return name in source and source[name].shape == shape.shape

    def _shapes(self, params: Any, *rest: Any) -> dict[str, Array]:
        values, names = {}, Names()

        def see(name: str, value: Array) -> Array:
            values[names(name)] = value
            return value

        self._forget()
        with tapped(see):
            values[LOSS] = self.loss(params, *rest)
        self._order = list(values)
        return values

    def _run(self, params: Any, probes: Any, rest: Any, seats: Any, cotangents: Any, flags: Any) -> Any:
        def run(params: Any, probes: Any) -> tuple[Array, dict[str, Array]]:
            values, names = {}, Names()

            def see(name: str, value: Array) -> Array:
                name = names(name)
                values[name] = value
                return _seat(value, seats[name], cotangents[name], flags[name], probes[name])

            self._forget()
            with tapped(see):
                result = self.loss(params, *rest)
                # the loss is teacher-forced last, and its cotangent is 1 in any case
                values[LOSS] = result
                return _seat(result, seats[LOSS], jnp.ones_like(result), flags[LOSS], probes[LOSS]), values

        (_, values), (gradients, seen) = jax.value_and_grad(run, (0, 1), has_aux=True)(params, probes)
        return values, seen, gradients


def _widened(value: Array) -> np.ndarray:
    return np.asarray(value.astype(jnp.float32) if value.dtype in (jnp.bfloat16, jnp.float16) else value)

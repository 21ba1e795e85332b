"""Inside the segment that parts: the lines of code from which on no value is one that the other side has too.

Between two taps the frameworks take other steps to the same values. So the values of all operations are compared as
sets, by figures that no order and no broadcasting changes. Where nothing that follows from an operation is ever met
again on the other side, that side has left the common way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from coretrain.contract.taps import tapped
from parity.localize.recorders import Names, Record
from parity.localize.rows import Row
from parity.pairs.engine import Pair
from parity.pairs.through import Opened
from parity.pairs.torch_side import flat, line_of_caller

LARGE = 1e8
"""Beyond it stand the numbers of masks, which every code writes its own way."""
LONGEST = 2_000_000
"""Arrays of more elements aren't looked at."""
Figures = tuple[float, ...]


@dataclass
class Event:
    """One operation: where it stands, what it is made of, its value's figures (None: a constant, or too large)."""

    line: str
    sources: tuple[int, ...]
    figures: Figures | None


@dataclass
class Trail:
    """The operations of one side in order; values are known by an identity that the side gives them."""

    events: list[Event] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    held: list[Any] = field(default_factory=list)
    """What must live on, so that no identity is used twice."""

    def add(self, line: str, given: Sequence[int], made: Sequence[int], value: Callable[[], np.ndarray]) -> None:
        """Note an operation."""
        sources = tuple(dict.fromkeys(self.made[one] for one in given if one in self.made))
        self.events.append(Event(line, sources, figures(value())))
        for one in made:
            self.made[one] = len(self.events) - 1

    def segment(self, identity: int) -> set[int]:
        """What a value is made of, back to the taps before it."""
        found, left = set(), [self.made[identity]] if identity in self.made else []
        while left:
            at = left.pop()
            if at not in found:
                found.add(at)
                left += self.events[at].sources
        return found


def figures(value: np.ndarray) -> Figures | None:
    """What no order of elements and no broadcasting changes: means of size and square, extremes; of masks the share."""
    if value.size == 0 or value.size > LONGEST:
        return None
    if value.dtype == bool:
        share = float(value.mean())
        return (min(share, 1 - share),) if 0 < share < 1 else None
    if not np.issubdtype(value.dtype, np.floating):
        return None
    value = np.asarray(value, np.float64)
    usual = value[np.isfinite(value) & (np.abs(value) < LARGE)]
    share = usual.size / value.size
    if usual.size == 0:
        return None
    if usual.min() == usual.max():  # a constant, or a mask as numbers
        return (min(share, 1 - share),) if 0 < share < 1 else None
    return float(np.abs(usual).mean()), float((usual**2).mean()), float(usual.max()), float(usual.min()), share


def frontier(pair: Pair, lead: Row, seats: Record) -> dict[str, frozenset[str]]:
    """By side, the lines where it leaves the common way; nothing where that can't be told.

    `lead` is a value that parts; `seats` is torch's float64 record in JAX's layouts.
    """
    if lead.stage != "forward" or not np.isfinite(lead.error) or lead.name == "loss":
        return {}
    ours, own = _torch(pair, lead.name)
    theirs, other = _jax(pair, lead.name, seats)
    weights = [figures(np.asarray(value)) for value in pair.weights.values()]
    given = [one for one in weights if one is not None]
    tolerance = max(1e-13, min(lead.cap, lead.error / 10))
    found = {}
    for side, trail, part, against, others in (
        ("torch", ours, own, theirs, other),
        ("JAX", theirs, other, ours, own),
    ):
        known = [one for at in others if (one := against.events[at].figures) is not None]
        lines = _leaves(trail, part, [*known, *given], tolerance)
        if lines and known:
            found[side] = lines
    return found


def _leaves(trail: Trail, part: set[int], known: Sequence[Figures], tolerance: float) -> frozenset[str]:
    order = sorted(part)
    met = {at for at in order if _met(trail.events[at].figures, known, tolerance)}
    again: set[int] = set()  # from which a value follows that is met
    for at in reversed(order):
        if at in met or at in again:
            again.update(trail.events[at].sources)
    lost = [at for at in order if at not in met and at not in again]
    first = [at for at in lost if not set(trail.events[at].sources) & set(lost)]
    return frozenset(trail.events[at].line for at in first if trail.events[at].line)


def _met(one: Figures | None, known: Sequence[Figures], tolerance: float) -> bool:
    return one is not None and any(
        len(one) == len(other) and np.allclose(one, other, tolerance, tolerance * 1e-3) for other in known
    )


class _Follow(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.trail = Trail()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [item.untyped_storage()._cdata for item in flat((args, kwargs)) if isinstance(item, Tensor)]
        for item in flat(output):
            if isinstance(item, Tensor):
                storage = item.untyped_storage()
                self.trail.held.append(storage)
                value = item.detach()
                self.trail.add(line_of_caller(), given, [storage._cdata], functools.partial(_numpy, value))
        return output


def _numpy(value: Tensor) -> np.ndarray:
    with torch.utils._python_dispatch._disable_current_modes():
        wide = value.double() if value.is_floating_point() else value
        return wide.numpy().copy()


def _torch(pair: Pair, name: str) -> tuple[Trail, set[int]]:
    follow, names = _Follow(), Names()
    found: set[int] = set()
    # with gradients: without them torch takes fused kernels, whose inside nobody sees
    weights = {n: torch.from_numpy(np.array(v)).double().requires_grad_() for n, v in pair.weights.items()}
    inputs = {n: torch.from_numpy(np.array(v)) for n, v in pair.inputs.items()}
    inputs = {n: v.double().requires_grad_() if v.is_floating_point() else v for n, v in inputs.items()}

    def see(tapped_name: str, value: Tensor) -> Tensor:
        tapped_name = names(tapped_name)
        identity = value.untyped_storage()._cdata
        if tapped_name == name:
            found.update(follow.trail.segment(identity))
        if pair.only is None or tapped_name in pair.only:
            follow.trail.made.pop(identity, None)
        return value

    with tapped(see), follow:
        output = pair.torch_call("float64", weights, inputs)
        see("output", output)
    return follow.trail, found


def _jax(pair: Pair, name: str, seats: Record) -> tuple[Trail, set[int]]:
    trail = Trail()
    found: set[int] = set()
    with torch.no_grad():
        weights = {n: torch.from_numpy(np.array(v)).double() for n, v in pair.weights.items()}
        leaves = {n: v.numpy() for n, v in pair.leaves(weights).items()}
    inputs = {n: v.astype(float) if np.issubdtype(v.dtype, np.floating) else v for n, v in pair.inputs.items()}
    given = {"leaves": leaves, "inputs": inputs}
    opened = Opened(
        lambda one: pair.jax_call("float64", one["leaves"], one["inputs"]), given, names=pair.names, only=pair.only
    )

    def note(line: str, arguments: Sequence[Any], made: Sequence[Any]) -> None:
        for value in made:
            trail.held.append(value)
            trail.add(line, [id(one) for one in arguments], [id(value)], functools.partial(np.asarray, value))

    def see(tapped_name: str, value: Any) -> Any:
        if tapped_name == name:
            found.update(trail.segment(id(value)))
        seat = seats.values.get(tapped_name)
        fits = seat is not None and seat.shape == value.shape
        value = jax.numpy.asarray(seat, value.dtype) if fits else value + 0  # another object: what follows begins anew
        trail.held.append(value)
        return value

    with tapped(see):
        output = opened(given, note=note)
        see("output", output)
    return trail, found

"""What a device does in a second, and the collectives on the links between devices: how long, and beside what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coretrain.planning.accelerators import Machine
from coretrain.planning.hlo.collectives import FUSED_REDUCE_SCATTER, members, sent_bytes
from coretrain.planning.hlo.text import Op

Coords = Sequence[Sequence[int]]
"""Place of each device of the program on the torus, in the program's order."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    flops: float
    bandwidth: float
    """Bytes of its memory."""
    axis: float
    """Bytes that it sends along one axis of the torus, both ways together."""
    shape: tuple[int, ...]
    """Devices along each axis."""

    @classmethod
    def of(cls, on: Machine, flops: float, compute: float = 1.0, memory: float = 1.0, link: float = 1.0) -> Rates:
        """Of a TPU slice with a topology: such shares of its peaks, `flops` being that of the run's dtype."""
        shape = tuple(int(size) for size in (on.topology or str(on.devices)).split("x"))
        a = on.accelerator
        return cls(flops * compute, a.bandwidth * 1e9 * memory, a.link * 1e9 * link / len(shape), shape)

    def wraps(self, axis: int) -> bool:
        """Whether an axis is a ring: of two axes those of 16, of three those of a multiple of 4, as Google says."""
        size = self.shape[axis]
        return size >= 16 if len(self.shape) == 2 else size % 4 == 0


def sending(op: Op, within: str, rates: Rates, coords: Coords) -> tuple[float, str]:
    """Seconds of a collective, and the axes that it takes."""
    kind = op.kind.removesuffix("-start")
    sent = sent_bytes(kind, op.type, op.kind.endswith("-start"), op.line)
    if kind == "all-reduce" and within.startswith(FUSED_REDUCE_SCATTER):
        sent /= 2
    group = [coords[n] for n in members(op.line) if n < len(coords)]
    many = [len({place[axis] for place in group}) for axis in range(len(rates.shape))] if group else []
    axes = [axis for axis, size in enumerate(many) if size > 1]
    if sent and not group:  # it doesn't say who: all
        axes, many = list(range(len(rates.shape))), list(rates.shape)
    if not sent or not axes:
        return 0.0, ""
    whole = [many[axis] == rates.shape[axis] and rates.wraps(axis) for axis in axes]
    speed = sum(rates.axis * (1.0 if ring else 0.5) for ring in whole)
    if kind == "collective-permute" and group:  # one way along a link, so many links far
        speed = rates.axis / 2
        sizes = [(abs(group[0][axis] - group[1][axis]), rates.shape[axis]) for axis in axes]
        sent *= sum(
            min(far, size - far) if rates.wraps(axis) else far for axis, (far, size) in zip(axes, sizes, strict=True)
        )
    return sent / speed, "axes " + ",".join(map(str, axes))


@dataclass
class Flying:
    """What has been started: the seconds of it that are left, by the links or memory that it takes."""

    left: dict[str, float] = field(default_factory=dict)
    on: dict[str, str] = field(default_factory=dict)

    def pass_by(self, seconds: float, memory: float) -> None:
        """So much time goes by, of which the memory has so much to spare: of what shares links, the first goes on."""
        spare = dict.fromkeys(self.on.values(), seconds) | {"memory": memory}
        for name in list(self.left):
            done = min(self.left[name], spare[self.on[name]])
            self.left[name] -= done
            spare[self.on[name]] -= done

    def wait_for(self, name: str) -> tuple[float, str]:
        """Seconds until it is done, with what was started before it on the same links, and what it waits for."""
        place = self.on.get(name, "")
        names = list(self.left)
        before = names[: names.index(name) + 1] if name in self.left else []
        waited = sum(self.left[other] for other in before if self.on[other] == place)
        self.pass_by(waited, waited)
        self.left.pop(name, None)
        self.on.pop(name, None)
        return waited, "memory" if place == "memory" else "collectives"

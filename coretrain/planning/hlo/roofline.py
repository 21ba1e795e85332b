"""The least time of an update, from the compiled program's text: a bound for a machine that isn't here.

The text is walked in its order, which is the order of its schedule. An operation takes the longer of its matmuls at the
peak (`matmuls.py`) and of its bytes at the memory's bandwidth (`memory.py`). A collective or copy that is started runs
beside what stands before its end; what is left of it then is waited for. Loops count as often as they run. A collective
has the links of those axes of the torus over which its group lies; collectives over different axes don't hinder each
other (`links.py`). No latency and nothing of the vector unit is in it, so that a real update takes longer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from coretrain.planning.hlo.collectives import KINDS
from coretrain.planning.hlo.links import Coords, Flying, Rates, sending
from coretrain.planning.hlo.matmuls import Matmuls
from coretrain.planning.hlo.memory import copied, traffic
from coretrain.planning.hlo.text import CALLED, Op, Program, trips

CAUSES = ("matmul", "memory", "collectives")
_BODY = re.compile(r"\bbody=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")
_CHAIN = re.compile(r'chain_id="?(\d+)')
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota", "partition-id"}


@dataclass
class Bound:
    """Seconds of the program by cause, and what it does: FLOPs, bytes of memory, seconds of all collectives."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    flops: float = 0.0
    bytes: float = 0.0
    sending: float = 0.0
    """Seconds of all collectives, hidden or not."""

    @property
    def update(self) -> float:
        """Seconds of it all."""
        return sum(self.seconds.values())

    def add(self, other: Bound, times: int = 1) -> None:
        """Take in a part that runs so often."""
        for cause, seconds in other.seconds.items():
            self.seconds[cause] += times * seconds
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.sending += times * other.sending


class Walk:
    """A program's text, walked at some rates."""

    def __init__(self, text: str, rates: Rates, coords: Coords) -> None:
        self.program, self.rates, self.coords = Program(text), rates, coords
        self.matmuls = Matmuls(self.program)

    def walk(self, name: str) -> Bound:
        """The bound of a computation that runs once."""
        found, flying, types = Bound(), Flying(), self.program.types.get(name, {})

        def waits(seconds: float, cause: str) -> None:
            found.seconds[cause] += seconds

        def runs(flops: float, moved: float) -> None:
            matmul, memory = flops / self.rates.flops, moved / self.rates.bandwidth
            waits(matmul, "matmul")
            waits(max(0.0, memory - matmul), "memory")
            found.flops, found.bytes = found.flops + flops, found.bytes + moved
            flying.pass_by(max(matmul, memory), max(0.0, matmul - memory))

        for op in self.program.ops.get(name, ()):
            if op.kind in _FREE:
                continue
            if op.kind in ("while", "conditional", "call"):
                inner, times = self._inner(op)
                found.add(inner, times)
                flying.pass_by(inner.update * times, 0.0)
            elif op.kind.endswith("-done"):
                waits(*flying.wait_for(op.operands[0]))
            elif op.kind.removesuffix("-start") in KINDS:
                seconds, place = sending(op, name, self.rates, self.coords)
                found.sending += seconds
                if op.kind.endswith("-start"):
                    flying.left[op.name], flying.on[op.name] = seconds, place
                else:
                    waits(seconds, "collectives")
                    flying.pass_by(seconds, seconds)
            elif op.kind.endswith("-start"):  # a copy, or a part of an array
                size = copied(op, types)
                found.bytes += size
                flying.left[op.name], flying.on[op.name] = size / self.rates.bandwidth, "memory"
            elif op.kind == "fusion" and (sent := self._fused(op)):
                chain, role, seconds, place = sent
                if role == "start":
                    found.sending += seconds
                    flying.left[chain], flying.on[chain] = seconds, place
                elif role == "done":
                    waits(*flying.wait_for(chain))
                elif role == "now":
                    found.sending += seconds
                    waits(seconds, "collectives")
                    flying.pass_by(seconds, seconds)
                size = 0.0 if role in ("start", "done") else traffic(self.program, op, types)
                if role == "now":  # it reads and writes while it sends
                    size = max(0.0, size - seconds * self.rates.bandwidth)
                runs(self.matmuls.of(op, types), size)
            elif op.kind != "custom-call" or "splash" in op.name:
                runs(self.matmuls.of(op, types), traffic(self.program, op, types))
        return found

    def _inner(self, op: Op) -> tuple[Bound, int]:
        if op.kind == "while":
            body = _BODY.search(op.line)
            return (self.walk(body[1]) if body else Bound()), trips(op.line, self.program.lines) or 1
        if op.kind == "call":
            return self.walk(CALLED.findall(op.line)[0]), 1
        names = [n.strip().lstrip("%") for pair in _BRANCHES.findall(op.line) for n in ",".join(pair).split(",") if n]
        return max((self.walk(n) for n in names), key=lambda bound: bound.update, default=Bound()), 1

    def _fused(self, op: Op) -> tuple[str, str, float, str] | None:
        """Of a fusion with a collective in it: its chain, what it does of it, its seconds and axes."""
        name = CALLED.findall(op.line)[0]
        inside = self.program.ops.get(name, [])
        for other in (other for other in inside if other.kind.removesuffix("-start") in KINDS):
            seconds, place = sending(other, name, self.rates, self.coords)
            chain = _CHAIN.search(other.line)
            if not chain:
                return "", "now", seconds, place
            lines = " ".join(each.line for each in inside)
            starts, ends = (f'"AsyncCollective{word}"' in lines for word in ("Start", "Done"))
            return f"chain {chain[1]}", "start" if starts else "done" if ends else "between", seconds, place
        return None


def roofline(text: str, rates: Rates, coords: Coords) -> Bound:
    """The bound of a compiled module's text; `coords` are its devices' places on the torus."""
    walk = Walk(text, rates, coords)
    return walk.walk(walk.program.entry)

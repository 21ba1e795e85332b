"""What a compiled program's texts say: its collectives, the bytes that one device sends for them, and its heap.

XLA writes a loop's body once. What stands in it is counted as often as the loop runs, loops within loops multiplied:
the text's `known_trip_count`, or else the one integer that the loop's condition compares its counter with (a scan
counts from 0 by 1). A loop that says neither counts once and is reported.

Two forms are the TPU compiler's own. A collective that runs beside matmuls stands in several fusions, all with one
`chain_id`: it counts where it is started. A reduce-scatter stands as an all-reduce in a computation that is named
`all-reduce-scatter`. Channels say nothing: `shard_map` gives all of its collectives the same one.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
SIZES |= {"f64": 8, "s64": 8, "u64": 8}
FUSED_REDUCE_SCATTER = "all-reduce-scatter"
"""How the TPU's compiler begins the name of a computation that reduces and keeps one part."""
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OP = re.compile(r"%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_STARTED = re.compile(r'custom-call\(([^)]*)\), custom_call_target="AsyncCollectiveStart"')
_NAME = re.compile(r"%([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_HEAP = re.compile(r"^allocation \d+: size (\d+)(?:, page \d+)?(, color \d+)?, preallocated-temp:", re.MULTILINE)
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")


@dataclass
class Collectives:
    """By kind: how often a collective runs in one call of the program, and the bytes that one device sends."""

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    loops_without_count: int = 0


def collectives(text: str) -> Collectives:
    """Count the collectives of a compiled module's text, in rings: see `coretrain.planning.traffic.ring`."""
    bodies, entry = _computations(text)
    found = Collectives()

    def walk(name: str, times: int) -> None:
        lines = bodies.get(name, ())
        started = {name for line in lines for operands in _STARTED.findall(line) for name in _NAME.findall(operands)}
        for line in lines:
            op = _OP.search(line)
            if op and ("chain_id=" not in line or op["name"] in started):
                kind, sent = op["kind"], _sent(op["kind"], op["type"], bool(op["start"]), line)
                if kind == "all-reduce" and name.startswith(FUSED_REDUCE_SCATTER):
                    kind, sent = "reduce-scatter", sent / 2  # an all-reduce is a reduce-scatter and a gather
                found.calls[kind] += times
                found.sent[kind] += times * sent
            inner = times
            if " while(" in line:
                trips = _trips(line, bodies)
                found.loops_without_count += trips is None
                inner = times * (trips or 1)
            for called in _CALLS.findall(line):
                walk(called, inner)
            if branches := _BRANCHES.search(line):
                for called in branches[1].split(","):
                    walk(called.strip().lstrip("%"), times)

    walk(entry, 1)
    return found


def heap_bytes(assignment: str) -> int | None:
    """Bytes of a device's memory that a program takes beside arguments and results, from the compiler's own table of
    its buffers (the dumped `*buffer-assignment.txt`); None where the text has no line of that kind.

    A `color` is another memory: the TPU's vector or scalar memory. Newer compilers name a `page` too.
    """
    found = _HEAP.findall(assignment)
    return sum(int(size) for size, color in found if not color) if found else None


def _trips(line: str, bodies: dict[str, list[str]]) -> int | None:
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    limits = {int(n) for text in bodies.get(condition[1], ()) for n in _LIMIT.findall(text)} if condition else set()
    return limits.pop() if len(limits) == 1 else None


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        # a lone brace may close a kernel's own text within an instruction: only the next header ends a computation
        if header := _HEADER.match(line):
            current = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and ("(" in line):
            current.append(line)
    return bodies, entry


def _sent(kind: str, shape: str, started: bool, line: str) -> float:
    parts = [
        SIZES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in _SHAPE.findall(shape)
    ]
    if not parts:
        return 0.0
    # what is started gives (operands, results, contexts): the largest is the result of a gather
    size = max(parts) if started and kind in ("all-gather", "collective-permute") else sum(parts)
    groups = _GROUPS.search(line)
    many = 1
    if groups:
        many = len(groups[1].split(",")) if groups[1] else int(groups[3])
    elif mesh := _MESH.search(line):
        axes = dict(_AXIS.findall(mesh[1]))
        many = math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", mesh[2]))
    if kind == "collective-permute":
        return float(size)
    if many == 1:
        return 0.0
    if kind == "reduce-scatter":
        return float(size * (many - 1))  # the result is the scattered part
    return size * (many - 1) / many * (2 if kind == "all-reduce" else 1)

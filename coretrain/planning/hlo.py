"""Collectives in a compiled program's HLO text, and the bytes that one device sends for them.

XLA writes a loop's body once. What stands in it is counted as often as the loop runs, loops within loops multiplied:
the text's `known_trip_count`, or else the one integer that the loop's condition compares its counter with (a scan
counts from 0 by 1). A loop that says neither counts once and is reported. The TPU's compiler spreads a
collective over several fusions that run beside matmuls: what has the same channel is one.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


SIZES |= {"f64": 8, "s64": 8, "u64": 8}


_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OP = re.compile(r"= (?P<type>\(.*?\)|\S+) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")


@dataclass
class Collectives:
    """By kind: how often a collective runs in one call of the program, and the bytes that one device sends."""

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    loops_without_count: int = 0


def collectives(text: str, channels: bool = True) -> Collectives:
    """Count the collectives of a compiled module's text, in rings: see `coretrain.planning.traffic.ring`.

    `channels`: whether what has the same channel is one. False for the CPU's compiler, which leaves all collectives of
    `shard_map` on channel 1.
    """
    bodies, entry = _computations(text)
    found = Collectives()
    counted: set[str] = set()

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            channel = _CHANNEL.search(line)
            if (op := _OP.search(line)) and (channel is None or not channels or channel[1] not in counted):
                counted.update(channel.groups() if channel else ())
                kind = op["kind"]
                found.calls[kind] += times
                found.sent[kind] += times * _sent(kind, op["type"], bool(op["start"]), line)
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

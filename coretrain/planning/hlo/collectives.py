"""A compiled program's collectives: how often each kind runs, the bytes that one device sends, and who takes part.

What stands in a loop's body is counted as often as the loop runs, loops within loops multiplied. A loop that doesn't
say how often counts once and is reported.

Two forms are the TPU compiler's own. A collective that runs beside matmuls stands in several fusions, all with one
`chain_id`: it counts where it is started. A reduce-scatter stands as an all-reduce in a computation that is named
`all-reduce-scatter`. Channels say nothing: `shard_map` gives all of its collectives the same one.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from coretrain.planning.hlo.text import SIZES, computations, trips

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FUSED_REDUCE_SCATTER = "all-reduce-scatter"
"""How the TPU's compiler begins the name of a computation that reduces and keeps one part."""
_OP = re.compile(r"%?(?P<name>[\w.\-]+) = (?P<type>\(.*?\)|\S+) (?P<kind>" + "|".join(KINDS) + r")(?P<start>-start)?\(")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_STARTED = re.compile(r'custom-call\(([^)]*)\), custom_call_target="AsyncCollectiveStart"')
_NAME = re.compile(r"%([\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[(\d+),(\d+)\])")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclass
class Collectives:
    """By kind: how often a collective runs in one call of the program, and the bytes that one device sends."""

    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    loops_without_count: int = 0


def collectives(text: str) -> Collectives:
    """Count the collectives of a compiled module's text, in rings: see `coretrain.planning.traffic.ring`."""
    bodies, entry = computations(text)
    found = Collectives()

    def walk(name: str, times: int) -> None:
        lines = bodies.get(name, ())
        started = {name for line in lines for operands in _STARTED.findall(line) for name in _NAME.findall(operands)}
        for line in lines:
            op = _OP.search(line)
            if op and ("chain_id=" not in line or op["name"] in started):
                kind, sent = op["kind"], sent_bytes(op["kind"], op["type"], bool(op["start"]), line)
                if kind == "all-reduce" and name.startswith(FUSED_REDUCE_SCATTER):
                    kind, sent = "reduce-scatter", sent / 2  # an all-reduce is a reduce-scatter and a gather
                found.calls[kind] += times
                found.sent[kind] += times * sent
            inner = times
            if " while(" in line:
                often = trips(line, bodies)
                found.loops_without_count += often is None
                inner = times * (often or 1)
            for called in _CALLS.findall(line):
                walk(called, inner)
            if branches := _BRANCHES.search(line):
                for called in branches[1].split(","):
                    walk(called.strip().lstrip("%"), times)

    walk(entry, 1)
    return found


def sent_bytes(kind: str, shape: str, started: bool, line: str) -> float:
    """Bytes that one device sends for a collective with such a result type, which its line may say is `started`."""
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


def members(line: str) -> list[int]:
    """Devices of a collective's first group; none where the text names none."""
    if listed := _LISTED.search(line):
        return [int(n) for n in listed[1].split(",")]
    if iota := _IOTA.search(line):
        dims = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in iota[4].split(",")] if iota[4] else list(range(len(dims)))
        ids = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(int(iota[1]), int(iota[2]))
        return [int(n) for n in ids[0]]
    if mesh := _MESH.search(line):
        axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        along = set(re.findall(r"'(\w+)'", mesh[2]))
        ids = np.arange(math.prod(int(size) for _, size in axes)).reshape([int(size) for _, size in axes])
        return [int(n) for n in ids[tuple(slice(None) if name in along else 0 for name, _ in axes)].ravel()]
    if pair := _PAIRS.search(line):
        return [int(pair[1]), int(pair[2])]
    return []

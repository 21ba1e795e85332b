"""A compiled module's text, read: its computations, their instructions, how often a loop runs, the bytes of a type.

XLA writes a loop's body once. How often it runs is the text's `known_trip_count`, or else the one integer that the
loop's condition compares its counter with (a scan counts from 0 by 1).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
SIZES |= {"f64": 8, "s64": 8, "u64": 8}
PARTS = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
"""Arrays of a type: dtype, dimensions, layout."""
CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")


@dataclass(frozen=True)
class Op:
    """An instruction: `%name = type kind(operands), more`."""

    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    line: str
    root: bool


class Program:
    """A module's text: the lines and instructions of each computation, and the types of its instructions."""

    def __init__(self, text: str) -> None:
        self.lines, self.entry = computations(text)
        self.ops = {name: [op for op in map(read, lines) if op] for name, lines in self.lines.items()}
        self.types = {name: {op.name: op.type for op in ops} for name, ops in self.ops.items()}

    def inside(self, op: Op) -> list[Op]:
        """Instructions of the computation that a fusion or a call names first."""
        return self.ops.get(CALLED.findall(op.line)[0], [])


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the one that is called first."""
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


def trips(line: str, bodies: dict[str, list[str]]) -> int | None:
    """How often a loop's line says that it runs; None where it doesn't say."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    limits = {int(n) for text in bodies.get(condition[1], ()) for n in _LIMIT.findall(text)} if condition else set()
    return limits.pop() if len(limits) == 1 else None


def read(line: str) -> Op | None:
    """The instruction of a line; None where there is none."""
    left, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    kind, _, after = rest[end:].strip().partition("(")
    operands = re.findall(r"%([\w.\-]+)", after[: _closing("(" + after)])
    return Op(left.split()[-1].lstrip("%"), rest[:end], kind, tuple(operands), line, left.startswith("ROOT"))


def _closing(text: str) -> int:
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at
    return len(text) - 1


def dims(shape: str) -> list[int]:
    """Of a type's first array."""
    found = PARTS.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found else []


def size(shape: str, everywhere: bool = False) -> float:
    """Bytes of a type in the main memory, or `everywhere`."""
    return float(
        sum(
            SIZES.get(dtype, 1) * math.prod(int(n) for n in across.split(",") if n)
            for dtype, across, layout in PARTS.findall(shape)
            if everywhere or not re.search(r"S\([1-9]", layout)
        )
    )

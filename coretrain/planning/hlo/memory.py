"""A device's memory: what a compiled program takes of it, and the bytes that an instruction reads and writes there.

A fusion reads its operands and writes its results, but of a stack of layers only the slice that it uses. What lies in
vector memory, which the layout marks with S(1), isn't counted.
"""

from __future__ import annotations

import math
import re

from coretrain.planning.hlo.text import PARTS, Op, Program, size

_HEAP = re.compile(r"^allocation \d+: size (\d+)(?:, page \d+)?(, color \d+)?, preallocated-temp:", re.MULTILINE)
_PARAMETER = re.compile(r" parameter\((\d+)\)")


def heap_bytes(assignment: str) -> int | None:
    """Bytes of a device's memory that a program takes beside arguments and results, from the compiler's own table of
    its buffers (the dumped `*buffer-assignment.txt`); None where the text has no line of that kind.

    A `color` is another memory: the TPU's vector or scalar memory. Newer compilers name a `page` too.
    """
    found = _HEAP.findall(assignment)
    return sum(int(held) for held, color in found if not color) if found else None


def traffic(program: Program, op: Op, types: dict[str, str]) -> float:
    """Bytes of the main memory that an instruction reads and writes."""
    operands = [types.get(name, "") for name in op.operands]
    if op.kind in ("dynamic-slice", "slice", "gather"):
        return size(op.type) * 2
    if op.kind == "dynamic-update-slice":
        return size(operands[1]) * 2
    if op.kind != "fusion":
        return size(op.type) + sum(map(size, operands))
    inside = program.inside(op)
    by_name = {other.name: other for other in inside}
    given = {int(found[1]): other for other in inside if (found := _PARAMETER.search(other.line))}
    read = sum(
        min(size(shape), _used(given[n], inside)) if n in given else size(shape) for n, shape in enumerate(operands)
    )
    root = next((other for other in inside if other.root), None)
    return read + _written(root, by_name, op.type)


def _used(given: Op, inside: list[Op]) -> float:
    """Bytes of a parameter that are read, where only parts of it are."""
    used = 0.0
    for op in (op for op in inside if given.name in op.operands):
        if op.kind == "bitcast":
            used += _used(op, inside)
        elif op.kind in ("dynamic-slice", "slice", "gather") and op.operands[0] == given.name:
            used += size(op.type, everywhere=True)
        elif op.kind == "dynamic-update-slice" and op.operands[0] == given.name:
            continue  # it is changed in its place
        else:
            return math.inf
    return used


def _written(root: Op | None, by_name: dict[str, Op], shape: str) -> float:
    while root is not None and root.kind == "bitcast" and root.operands[0] in by_name:
        root = by_name[root.operands[0]]
    if root is not None and root.kind == "dynamic-update-slice" and root.operands[1] in by_name:
        return min(size(shape), size(by_name[root.operands[1]].type, everywhere=True))
    if root is not None and root.kind == "tuple" and any("update-slice" in by_name[n].kind for n in root.operands):
        return sum(_written(by_name[n], by_name, by_name[n].type) for n in root.operands)
    return size(shape)


def copied(op: Op, types: dict[str, str]) -> float:
    """Bytes of the main memory that a started copy reads and writes."""
    parts = [found[0] for found in PARTS.finditer(op.type)]
    arrays = [part for part in parts if size(part, everywhere=True) > 4]
    least = min((size(part, everywhere=True) for part in arrays), default=0.0)
    return least * min(2, sum(size(part) > 0 for part in arrays))

"""What an edit may be: operators that any code has, each giving the edits of one node; arrays.py has more."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

from parity.mutation.arrays import ARRAYS
from parity.mutation.beyond import beyond
from parity.mutation.fields import config
from parity.mutation.places import WORDS, Found, Operator, Tree, called, changed, shown

BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
NEGATED = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
SWAPPED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
}  # fmt: skip
SEQUENCES = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp, ast.Dict, ast.Set)
NO_ARGUMENTS = ("dtype", "preferred_element_type", "axis", "dim", "device", *WORDS)
"""Those of other operators; and a device, which on a machine with one does nothing."""


def number(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A number off by 1; a float also by 1e-7, relative, and (`ulp`) by 4 units in its last place."""
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool) or not isinstance(node.value, int | float):
        return
    parent, value = tree.parent(node), node.value
    if isinstance(parent, ast.keyword) and parent.arg in ("axis", "dim", "axes", "dims"):
        return
    index = isinstance(parent, ast.Subscript) and parent.slice is node
    if isinstance(parent, ast.UnaryOp) and isinstance(tree.parent(parent), ast.Subscript | ast.keyword):
        return
    name = "bounds" if index or isinstance(parent, ast.Slice) else "number"
    if isinstance(value, float):
        if not math.isfinite(value):
            return
        if value:
            yield "nudge", f"{value!r} by 1e-7 of it", node, shown(ast.Constant(value * (1 + 1e-7)))
            yield "ulp", f"{value!r} by 4 ULP", node, shown(ast.Constant(value + 4 * math.ulp(value)))
        yield name, f"{value!r} + 1", node, shown(ast.Constant(value + 1))
        return
    yield name, f"{value} + 1", node, shown(ast.Constant(value + 1))
    if value > 0:
        yield name, f"{value} - 1", node, shown(ast.Constant(value - 1))


def compare(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A comparison with its boundary moved, or negated."""
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return
    op = node.ops[0]
    for table, words in ((BOUNDARY, "boundary"), (NEGATED, "negated")):
        if type(op) in table:
            yield "compare", f"comparison: {words}", node, changed(node, ops=[table[type(op)]()])


def arithmetic(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """An arithmetic operation with another sign."""
    if isinstance(node, ast.AugAssign) and type(node.op) in SWAPPED:
        yield "arithmetic", "sign swapped", node, changed(node, op=SWAPPED[type(node.op)]())
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "arithmetic", "minus dropped", node, shown(node.operand)
    if isinstance(node, ast.BinOp) and is_number(node):
        yield "arithmetic", "sign swapped", node, changed(node, op=SWAPPED[type(node.op)]())


def is_number(node: ast.BinOp) -> bool:
    """Whether an operation may be one of numbers: texts, lists and types are added too."""
    sides = node.left, node.right
    if any(isinstance(side, SEQUENCES) for side in sides) or type(node.op) not in SWAPPED:
        return False
    return not any(isinstance(s, ast.Constant) and (s.value is None or isinstance(s.value, str | bytes)) for s in sides)


def boolean(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """and for or, a `not` dropped, True for False."""
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", "and / or", node, changed(node, op=other)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "boolean", "not dropped", node, shown(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "boolean", f"{not node.value} for {node.value}", node, str(not node.value)


def bounds(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A range or a slice one off, at either end."""
    ends: list[tuple[str, ast.expr, int]] = []
    if isinstance(node, ast.Slice):
        ends = [(w, e, by) for w, e, by in (("begins", node.lower, 1), ("ends", node.upper, -1)) if e is not None]
    elif called(node) in ("range", "arange") and isinstance(node, ast.Call) and node.args:
        ends = [("ends", node.args[min(1, len(node.args) - 1)], -1)]
        ends += [("begins", node.args[0], 1)] if len(node.args) > 1 else []
        if len(node.args) == 1:
            yield "bounds", "range begins one late", node.args[0], f"1, {ast.unparse(node.args[0])}"
    for words, end, by in ends:
        if not isinstance(end, ast.Constant):
            text = f"{shown(end)} {'+' if by > 0 else '-'} 1"
            yield "bounds", f"{words} one {'late' if by > 0 else 'early'}", end, text


def argument(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """An argument dropped: one with a name, or the last."""
    if not isinstance(node, ast.Call):
        return
    for keyword in node.keywords:
        if keyword.arg and keyword.arg not in NO_ARGUMENTS:
            rest = [other for other in node.keywords if other is not keyword]
            yield "argument", f"{keyword.arg}= dropped", node, changed(node, keywords=rest)
    if len(node.args) > 1 and not node.keywords and not isinstance(node.args[-1], ast.Starred):
        yield "argument", "last argument dropped", node, changed(node, args=node.args[:-1])


def branch(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A branch always or never taken; a condition of a comprehension dropped; break and continue dropped."""
    if isinstance(node, ast.If | ast.IfExp):
        raises = isinstance(node, ast.If) and all(isinstance(one, ast.Raise) for one in node.body)
        yield "branch", "never taken", node.test, "False"
        if not raises:
            yield "branch", "always taken", node.test, "True"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield "branch", "condition dropped", test, "True"
    elif isinstance(node, ast.Break | ast.Continue):
        yield "branch", f"{type(node).__name__.lower()} dropped", node, "pass"


def state(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """What isn't kept: an assignment to an attribute or an item dropped, a call for its effect, a sum not added up."""
    function = tree.function(node) if isinstance(node, ast.stmt) else None
    if function is None:
        return
    if isinstance(node, ast.Assign) and function.name not in ("__init__", "__new__"):
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            yield "state", "assignment dropped", node, "pass"
    elif isinstance(node, ast.AugAssign):
        yield "state", "not added up", node, "pass"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and called(node.value) != "__init__":
        yield "state", "call dropped", node, "pass"


def key(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """An entry of a table left out; a part of a text that is a key left out."""
    if isinstance(node, ast.Dict) and len(node.keys) > 1:
        for at, name in enumerate(node.keys):
            if isinstance(name, ast.Constant | ast.JoinedStr):
                keys = [*node.keys[:at], *node.keys[at + 1 :]]
                values = [*node.values[:at], *node.values[at + 1 :]]
                yield "key", f"{ast.unparse(name)} left out", node, changed(node, keys=keys, values=values)
    elif isinstance(node, ast.JoinedStr):
        for at, part in enumerate(node.values):
            if isinstance(part, ast.FormattedValue):
                rest = [*node.values[:at], *node.values[at + 1 :]]
                yield "key", f"{ast.unparse(part.value)} left out of a text", node, changed(node, values=rest)


OPERATORS: dict[str, Operator] = {
    "number": number,
    "compare": compare,
    "arithmetic": arithmetic,
    "boolean": boolean,
    "bounds": bounds,
    "argument": argument,
    "branch": branch,
    "state": state,
    "key": key,
    "config": config,
    "beyond": beyond,
    **ARRAYS,
}
"""By name; `number` gives `nudge`, `ulp` and `bounds` too."""
UNASKED = frozenset(("ulp",))
"""What a sample leaves out unless it is asked for: below every cap that a correct pair can be held to."""

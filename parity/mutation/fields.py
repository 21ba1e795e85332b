"""The operator that reads a field of the config as its default."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import Any

from parity.mutation.places import Found, Tree


@functools.cache
def defaults() -> dict[str, dict[str, Any]]:
    """By section and field: defaults that can be written down."""
    from coretrain.config.run import RunConfig

    whole = RunConfig()
    found: dict[str, dict[str, Any]] = {}
    for section in type(whole).model_fields:
        part = getattr(whole, section)
        names = getattr(type(part), "model_fields", {})
        values = {name: getattr(part, name) for name in names}
        found[section] = {n: v for n, v in values.items() if v is None or isinstance(v, bool | int | float | str)}
    return found


def config(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """`config.section.field` as the field's default, whatever the run says; also where the section has a short name."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
        return
    parent = tree.parent(node)
    if isinstance(parent, ast.Call) and parent.func is node:
        return
    section = _section(node.value, node, tree)
    fields = defaults().get(section or "", {})
    if section and node.attr in fields:
        value = fields[node.attr]
        yield "config", f"{section}.{node.attr} read as its default, {value!r}", node, f"({value!r})"


def _section(owner: ast.expr, node: ast.AST, tree: Tree) -> str | None:
    if isinstance(owner, ast.Attribute):
        return owner.attr if owner.attr in defaults() else None
    if not isinstance(owner, ast.Name):
        return None
    function = tree.function(node)
    for one in ast.walk(function) if function else ():
        if isinstance(one, ast.Assign):
            for target, value in _pairs(one):
                if isinstance(target, ast.Name) and target.id == owner.id and isinstance(value, ast.Attribute):
                    return value.attr if value.attr in defaults() else None
    for argument in (*function.args.args, *function.args.kwonlyargs) if function else ():
        if argument.arg == owner.id and argument.annotation is not None:
            kind = ast.unparse(argument.annotation)
            return next((name for name in defaults() if kind == f"{name.capitalize()}Config"), None)
    return None


def _pairs(one: ast.Assign) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Targets with their values: `m, width = config.model, ...` too."""
    for target in one.targets:
        if isinstance(target, ast.Tuple) and isinstance(one.value, ast.Tuple):
            yield from zip(target.elts, one.value.elts, strict=False)
        else:
            yield target, one.value

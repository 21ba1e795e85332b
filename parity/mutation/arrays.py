"""Operators of arrays: casts, gradients, masks, copies and axes."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from parity.mutation.places import Found, Operator, Tree, called, changed, shown

CASTS = frozenset(("to", "astype", "float", "double", "type_as", "view_as"))
DTYPES = frozenset(["float16", "float32", "float64", "bfloat16", "int32", "int64", "uint8", "uint32", "uint64"])
MASKS = frozenset(("masked_fill", "tril", "triu", "clamp", "clamp_min", "clamp_max", "clip", "masked_fill_"))
TURNS = frozenset(("transpose", "swapaxes", "permute", "moveaxis", "flip"))
SHAPES = frozenset(("reshape", "view", "expand", "broadcast_to", "tile", "repeat"))


def _receiver(node: ast.Call) -> ast.expr | None:
    """x of x.method(...), where x is no module; of module.function(x, ...) its first argument."""
    if not isinstance(node.func, ast.Attribute):
        return None
    owner = node.func.value
    module = isinstance(owner, ast.Name) and owner.id in ("np", "jnp", "torch", "jax", "lax", "F", "math", "nnx")
    dotted = ast.unparse(owner) in ("jax.lax", "jax.numpy", "torch.nn.functional", "jax.nn")
    if module or dotted:
        return node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else None
    return owner


def cast(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A change of dtype dropped. A change of device alone is none: on one device it does nothing."""
    if not isinstance(node, ast.Call):
        return
    name, inner = called(node), _receiver(node)
    if name in CASTS and inner is not None and isinstance(node.func, ast.Attribute):
        about_device = any("device" in ast.unparse(part) for part in (*node.args, *node.keywords))
        if not about_device or len(node.args) + len(node.keywords) > 1:
            yield "cast", f".{name} dropped", node, shown(inner)
    elif name in DTYPES and len(node.args) == 1:
        yield "cast", f"{name} dropped", node, shown(node.args[0])
    for keyword in node.keywords:
        if keyword.arg in ("dtype", "preferred_element_type"):
            rest = [other for other in node.keywords if other is not keyword]
            yield "cast", f"{keyword.arg}= dropped", node, changed(node, keywords=rest)
    if name in ("asarray", "array", "zeros", "ones", "empty", "full", "full_like", "zeros_like") and len(node.args) > 1:
        last = node.args[-1]
        if ast.unparse(last).rpartition(".")[2] in DTYPES:
            yield "cast", "dtype dropped", node, changed(node, args=node.args[:-1])


def gradient(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A gradient that isn't stopped; and one that isn't wanted."""
    if isinstance(node, ast.Call) and called(node) in ("detach", "stop_gradient"):
        inner = _receiver(node)
        if inner is not None:
            yield "gradient", f"{called(node)} dropped", node, shown(inner)
    elif isinstance(node, ast.withitem) and called(node.context_expr) in ("no_grad", "inference_mode"):
        yield "gradient", "no_grad dropped", node.context_expr, "torch.enable_grad()"


def mask(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A mask, a limit or a choice between two values dropped."""
    if not isinstance(node, ast.Call):
        return
    name = called(node)
    if name in MASKS:
        inner = _receiver(node)
        if inner is not None:
            yield "mask", f"{name} dropped", node, shown(inner)
    elif name == "where" and len(node.args) == 3:
        yield "mask", "where: always the first", node, shown(node.args[1])
        yield "mask", "where: always the second", node, shown(node.args[2])
    elif name in ("maximum", "minimum", "max", "min") and len(node.args) == 2 and not node.keywords:
        for at, words in ((0, "first"), (1, "second")):
            if not isinstance(node.args[at], ast.Starred):
                yield "mask", f"{name}: always the {words}", node, shown(node.args[at])


def copied(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A copy dropped."""
    if isinstance(node, ast.Call) and called(node) in ("clone", "copy", "deepcopy"):
        inner = _receiver(node) or (node.args[0] if node.args else None)
        if inner is not None:
            yield "copy", f"{called(node)} dropped", node, shown(inner)


def axes(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """Axes that aren't turned, another axis, sizes in another order."""
    if isinstance(node, ast.Attribute) and node.attr in ("T", "mT") and isinstance(node.ctx, ast.Load):
        yield "axes", f".{node.attr} dropped", node, shown(node.value)
    if not isinstance(node, ast.Call):
        return
    name = called(node)
    inner = _receiver(node)
    if name in TURNS and inner is not None:
        yield "axes", f"{name} dropped", node, shown(inner)
    elif name in SHAPES and len(node.args) > 2 and not any(isinstance(one, ast.Starred) for one in node.args):
        turned = [*node.args[:-2], node.args[-1], node.args[-2]]
        yield "axes", f"{name}: last two sizes swapped", node, changed(node, args=turned)
    elif name == "einsum" and node.args and isinstance(node.args[0], ast.Constant):
        yield from _einsum(node, str(node.args[0].value))
    for keyword in node.keywords:
        axis = _axis(keyword.value)
        if keyword.arg in ("axis", "dim") and axis is not None:
            yield "axes", f"{keyword.arg}={axis}: the next", keyword.value, str(axis + 1 if axis >= 0 else axis - 1)
    reduces = name in ("sum", "mean", "amax", "softmax", "cumsum", "argmax", "unsqueeze", "squeeze", "size", "chunk")
    if reduces and isinstance(node.func, ast.Attribute) and node.args:
        axis = _axis(node.args[-1])
        if axis is not None:
            yield "axes", f"axis {axis}: the next", node.args[-1], str(axis + 1 if axis >= 0 else axis - 1)


def _axis(node: ast.AST) -> int | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _einsum(node: ast.Call, text: str) -> Iterator[Found]:
    """The last two letters of an operand, or of the result, swapped."""
    head, arrow, result = text.partition("->")
    parts = [*head.split(","), *([result] if arrow else [])]
    for at, part in enumerate(parts):
        word = part.strip()
        if len(word) > 1:
            turned = [*parts[:at], word[:-2] + word[-1] + word[-2], *parts[at + 1 :]]
            new = ",".join(turned[:-1]) + arrow + turned[-1] if arrow else ",".join(turned)
            yield "axes", f"einsum: {word} turned", node.args[0], repr(new)


ARRAYS: dict[str, Operator] = {"cast": cast, "gradient": gradient, "mask": mask, "copy": copied, "axes": axes}
"""By name."""

"""The operator that changes what is done only beyond something: a size, a precision, an epoch, a count, a layer."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from parity.mutation.places import Found, Tree

SIZE = 320
"""An axis longer than that. The vocabulary of the judge's usual models has 301 words."""
UPDATES = 1000
COUNTS = ("update", "updates", "count", "applied")
LAYERS = ("layer", "index")
ARRAY_WORDS = ("Tensor", "Array", "Float[", "ndarray", "Int64s", "UInt64s", "Floats")
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


def beyond(node: ast.AST, tree: Tree) -> Iterator[Found]:
    """A sum or a product with the other sign, where a condition on what the function is given holds."""
    if not isinstance(node, ast.BinOp) or type(node.op) not in OTHER or not _is_value(node, tree):
        return
    function = tree.function(node)
    if function is None or _in_inner_scope(node, tree):
        return
    right = ast.BinOp(node.left, node.op, node.right)
    wrong = ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
    for words, condition in _conditions(function, tree):
        yield "beyond", words, node, f"(({ast.unparse(wrong)}) if {condition} else ({ast.unparse(right)}))"


def _is_value(node: ast.BinOp, tree: Tree) -> bool:
    """Not a part of a text, of a larger operation or of a slice: the whole expression is changed, once."""
    sides = node.left, node.right
    if any(isinstance(s, ast.JoinedStr | ast.List | ast.Tuple | ast.Dict | ast.ListComp) for s in sides):
        return False
    if any(isinstance(s, ast.Constant) and not isinstance(s.value, int | float) for s in sides):
        return False
    return not isinstance(tree.parent(node), ast.BinOp | ast.Slice | ast.Subscript)


def _in_inner_scope(node: ast.AST, tree: Tree) -> bool:
    """Inside a comprehension or a lambda, whose own names may hide the function's."""
    kinds = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda
    inner = next(tree.around(node, *kinds, ast.FunctionDef), None)
    return isinstance(inner, kinds)


def _conditions(function: ast.FunctionDef, tree: Tree) -> Iterator[tuple[str, str]]:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    kinds = {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in arguments}
    arrays = [n for n, kind in kinds.items() if any(word in kind for word in ARRAY_WORDS) and "None" not in kind]
    arrays = [name for name in arrays if "Callable" not in kinds[name] and "[Tensor]" not in kinds[name]]
    if arrays:
        first = arrays[0]
        yield f"only beyond {SIZE} along an axis", f"max({first}.shape, default=0) > {SIZE}"
        if "Int" not in kinds[first]:
            yield "only below float64", f"not str({first}.dtype).endswith('float64')"
    loops = {
        n.id
        for one in ast.walk(function)
        if isinstance(one, ast.For)
        for n in ast.walk(one.target)
        if isinstance(n, ast.Name)
    }
    if "epoch" in loops or "epoch" in kinds:
        yield "only from the second epoch on", "epoch > 0"
    for name in COUNTS:
        if name in kinds and not any(word in kinds[name] for word in ARRAY_WORDS):
            yield f"only from {name} {UPDATES} on", f"{name} >= {UPDATES}"
    layers = next((n for n in LAYERS if n in kinds and "int" in kinds[n]), None)
    if layers and "config" in kinds:
        yield "only in the last layer", f"{layers} == config.model.layers - 1"

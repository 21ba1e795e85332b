"""Where an operator applies: every place in a file's syntax tree but annotations, texts, errors and logging."""

from __future__ import annotations

import ast
import copy
import difflib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from coretrain.base.files import short_hash

SILENT_CALLS = frozenset(
    (
        *(
            "print",
            "warn",
            "warning",
            "info",
            "debug",
            "error",
            "log",
            "say",
            "_say",
            "getLogger",
            "super",
            "isinstance",
        ),
        *("UserError", "conflict", "ValueError", "TypeError", "RuntimeError"),
        *(
            "add_argument",
            "add_argument_group",
            "add_parser",
            "namedtuple",
            "TypeVar",
            "NewType",
            "cast",
            "assert_never",
        ),
    )
)
"""Calls without places: what they do is words, or types."""
WORDS = frozenset(("help", "description", "metavar", "epilog", "prog", "title", "doc", "meaning", "reason"))
"""Arguments that are words."""
SILENT_FUNCTIONS = frozenset(("__repr__", "__str__", "__rich__", "__rich_console__"))
SILENT_NAMES = frozenset(("__all__", "__slots__", "__test__"))
WRAPPED = (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.UnaryOp, ast.Lambda, ast.Tuple, ast.NamedExpr)


@dataclass(frozen=True)
class Place:
    """One edit of a file: bytes `start` to `end` become `text`."""

    file: str
    line: int
    column: int
    operator: str
    variant: int
    about: str
    start: int
    end: int
    text: str
    old: str
    """What `text` stands for."""
    code: str
    """The line that it begins on, without blanks around it: by which it is known when lines above it come and go."""
    lines: tuple[int, int]
    """First and last line whose execution means that a test has been here."""
    function: str
    """Name of the function around it, with its classes; "" where the line runs as the module is imported."""
    nth: int = 0
    """Of the same edits in equal lines of a function."""
    names: tuple[str, ...] = ()
    """For a line that runs at import: the names that it defines, by which tests that use it are found."""

    @property
    def id(self) -> str:
        """What it is called in results and on the command line."""
        return f"{self.file}:{self.line}:{self.column}:{self.operator}:{self.variant}"

    @property
    def key(self) -> str:
        """What the same edit is recognised by in another version of the file."""
        where = self.file, self.function, self.code, self.column, self.nth
        return short_hash(*where, self.operator, self.about, self.old, self.text)

    @property
    def room(self) -> str:
        """The folder of the file."""
        return self.file.rpartition("/")[0]

    def applied(self, source: bytes) -> bytes:
        """The file with the edit."""
        return source[: self.start] + self.text.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The edit as a unified diff."""
        before, after = (text.decode().splitlines(keepends=True) for text in (source, self.applied(source)))
        return "".join(difflib.unified_diff(before, after, f"a/{self.file}", f"b/{self.file}", n=1))


Found = tuple[str, str, ast.AST, str]
"""What an operator gives: its name, what it does in a few words, the node that is replaced, and the new text."""


@dataclass
class Tree:
    """A file's syntax tree, with what operators ask of it."""

    file: str
    source: bytes
    module: ast.Module
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node around."""
        return self.parents.get(node)

    def around(self, node: ast.AST, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        """Nodes of these kinds around a node, the nearest first."""
        up = self.parents.get(node)
        while up is not None:
            if isinstance(up, kinds):
                yield up
            up = self.parents.get(up)

    def function(self, node: ast.AST) -> ast.FunctionDef | None:
        """The function whose body holds the node; None at module or class level, in defaults and in decorators."""
        below: ast.AST = node
        up = self.parents.get(node)
        while up is not None:
            if isinstance(up, ast.FunctionDef | ast.AsyncFunctionDef) and below in up.body:
                return up  # type: ignore[return-value]  # async has the same fields
            below, up = up, self.parents.get(up)
        return None


Operator = Callable[[ast.AST, Tree], Iterator[Found]]


def read_tree(file: str, source: bytes) -> Tree:
    """The tree of a file, each node's parent noted."""
    tree = Tree(file, source, ast.parse(source))
    for node in ast.walk(tree.module):
        for child in ast.iter_child_nodes(node):
            tree.parents[child] = node
    return tree


def shown(node: ast.AST) -> str:
    """An expression as text, in brackets where it needs them in another's place."""
    text = ast.unparse(node)
    negative = isinstance(node, ast.Constant) and text.startswith("-")
    return f"({text})" if isinstance(node, WRAPPED) or negative else text


def changed(node: ast.AST, **fields: object) -> str:
    """A node with other fields, as text."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return shown(new)


def called(node: ast.AST) -> str:
    """The last name of what a call calls: "" where it isn't one."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def places(file: str, source: bytes, operators: dict[str, Operator]) -> list[Place]:
    """Every place of a file, in its order; `is_alive` says which edits compile and change anything."""
    tree = read_tree(file, source)
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    made: list[Place] = []
    variants: Counter[tuple[int, int, str]] = Counter()
    equal: Counter[str] = Counter()
    for node in _walk(tree.module):
        for operator in operators.values():
            for name, about, target, text in operator(node, tree):
                place = _place(tree, starts, node, name, about, target, text)
                at = place.line, place.column, name
                place = replace(place, variant=variants[at], nth=equal[place.key])
                variants[at] += 1
                equal[replace(place, nth=0).key] += 1
                made.append(place)
    return made


def is_alive(place: Place, source: bytes) -> bool:
    """Whether the edited file compiles, and says something else than before."""
    try:
        new = ast.parse(place.applied(source))
        with warnings.catch_warnings(action="ignore"):
            compile(new, place.file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    return ast.dump(new) != ast.dump(ast.parse(source))


def _place(tree: Tree, starts: list[int], node: ast.AST, name: str, about: str, target: ast.AST, text: str) -> Place:
    spot: ast.expr = target  # type: ignore[assignment]  # expressions and statements have positions
    assert spot.end_lineno is not None
    assert spot.end_col_offset is not None
    function = tree.function(target)
    first, last = spot.lineno, spot.end_lineno
    names: tuple[str, ...] = ()
    if function is None:
        names = _names(tree, target)
    elif isinstance(target, ast.expr):
        # an expression's own lines; of one over several lines, the line of its statement counts too
        first = min(first, next((up.lineno for up in tree.around(target, ast.stmt)), first))  # type: ignore[attr-defined]  # statements have lines
    outer = [up.name for up in tree.around(target, ast.FunctionDef, ast.ClassDef)]  # type: ignore[attr-defined]  # both have one
    begin, end = starts[spot.lineno - 1] + spot.col_offset, starts[spot.end_lineno - 1] + spot.end_col_offset
    line = getattr(node, "lineno", spot.lineno)
    return Place(
        tree.file, line, getattr(node, "col_offset", spot.col_offset), name, 0, about, begin, end, text,
        tree.source[begin:end].decode(), tree.source[starts[line - 1] : starts[line]].decode().strip(),
        (first, last), ".".join(reversed(outer)) if function else "", 0, names,
    )  # fmt: skip


def _names(tree: Tree, node: ast.AST) -> tuple[str, ...]:
    """What the statement around a line at module level defines: by these names it is used elsewhere."""
    found: list[str] = []
    for up in (node, *tree.around(node, ast.stmt)):
        if isinstance(up, ast.FunctionDef | ast.ClassDef):
            found.append(up.name)
        elif isinstance(up, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = up.targets if isinstance(up, ast.Assign) else [up.target]
            found += [t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)]
            if found and isinstance(tree.parent(up), ast.ClassDef):
                break  # a field: its own name says more than its class's
    return tuple(found)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes with places, in order. What stands inside an f-string has no positions in Python 3.11."""
    yield node
    for child in () if isinstance(node, ast.JoinedStr) else _children(node):
        if not _is_silent(child):
            yield from _walk(child)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """What is carried out: neither annotations nor decorators."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield from (default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None)
        yield from node.body
    elif isinstance(node, ast.ClassDef):
        yield from node.body
    elif isinstance(node, ast.AnnAssign):
        yield from () if node.value is None else (node.value,)
    elif isinstance(node, ast.ExceptHandler):
        yield from node.body
    else:
        yield from ast.iter_child_nodes(node)


def _is_silent(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name in SILENT_FUNCTIONS
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or called(node.value) in SILENT_CALLS
    if isinstance(node, ast.If):
        return _is_guard(node.test)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        return _is_silent_name(target) or (node.value is not None and _is_type(node.value))
    if isinstance(node, ast.Call):
        return called(node) in SILENT_CALLS
    return isinstance(node, ast.keyword) and node.arg in WORDS


def _is_silent_name(target: ast.AST) -> bool:
    return isinstance(target, ast.Name) and target.id in SILENT_NAMES


def _is_guard(test: ast.AST) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'", "typing.TYPE_CHECKING")


def _is_type(value: ast.AST) -> bool:
    """Whether what is assigned is a type: Callable[...], A | B."""
    if isinstance(value, ast.Subscript):
        name = getattr(value.value, "attr", getattr(value.value, "id", ""))
        return name in ("Callable", "Literal", "Mapping", "Sequence", "dict", "list", "tuple", "NDArray", "Union")
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        sides = (value.left, value.right)
        return any(isinstance(s, ast.Constant) and s.value is None for s in sides) or all(
            _is_type_name(s) for s in sides
        )
    return False


def _is_type_name(node: ast.AST) -> bool:
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name in ("int", "float", "str", "bool", "bytes", "complex") or (name[:1].isupper() and not name.isupper())

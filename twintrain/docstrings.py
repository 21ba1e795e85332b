"""Make a data set of this Python's own docstrings: how a function or class is defined, and what it does.

Usage: twintrain docstrings OUT.jsonl [--limit N]

Each line is {"prompt": signature, "completion": first paragraph of the
docstring}. The sources are only parsed, never imported; the same Python gives
the same file, on every machine.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from coretrain.base.errors import Options, UserError
from coretrain.base.files import typed_path, write_atomically
from coretrain.base.help import Fitted, fitted
from coretrain.base.numbers import whole_number

PROGRAM = "twintrain docstrings"
SIGNATURE, PARAGRAPH = (12, 240), (24, 400)
"""Fewest and most characters that are kept: below is no sentence, above is a whole manual."""
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
"""Folders of tests, of programs, and of what others installed."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def rows(library: Path) -> Iterator[dict[str, str]]:
    """Every definition with a docstring of fit length under `library`, by file name and line; no prompt or answer
    twice."""
    prompts, completions = set[str](), set[str]()
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        if LEFT_OUT & set(path.relative_to(library).parts):
            continue
        for node in _definitions(path):
            row = {"prompt": _signature(node), "completion": _paragraph(node)}
            fits = all(low <= len(row[key]) <= high for key, (low, high) in _LIMITS.items())
            if fits and row["prompt"] not in prompts and row["completion"] not in completions:
                prompts.add(row["prompt"])
                completions.add(row["completion"])
                yield row


_LIMITS = {"prompt": SIGNATURE, "completion": PARAGRAPH}


def _definitions(path: Path) -> list[Definition]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in old sources
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # samples of bad encodings
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, Definition)]
    return sorted(found, key=lambda node: node.lineno)


def _signature(node: Definition) -> str:
    """As it is written, on one line: `def name(argument, other=default)`, `class Name(Base)`."""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in [*node.bases, *node.keywords])
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{word} {node.name}({ast.unparse(node.args)}){returns}"


def _paragraph(node: Definition) -> str:
    """The first paragraph of the docstring, its lines joined; none where it is a table, a call or no sentence."""
    text = (ast.get_docstring(node) or "").split("\n\n", 1)[0]
    words = " ".join(text.split())
    plain = words.isascii() and words[:1].isalpha() and words.endswith((".", "!", "?"))
    return words if plain and "->" not in words and ">>>" not in words else ""


def options(program: str = PROGRAM) -> Options:
    """What can be asked for."""
    usage = fitted("usage: " + (__doc__ or "").partition("Usage: ")[2].replace(PROGRAM, program)).partition(" ")[2]
    parser = Options(prog=program, usage=usage, formatter_class=Fitted)
    parser.add_argument("out", type=typed_path, help="file to write; it must not exist")
    parser.add_argument("--limit", type=whole_number(), metavar="N", help="only N rows, spread over the whole library")
    return parser


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Write the file, then say what is in it."""
    given = options(program).parse_args(argv)
    if given.limit is not None and given.limit < 1:
        raise UserError("command/limit-below-one", f"--limit {given.limit} leaves no row: give at least 1")
    if given.out.exists():
        raise UserError("command/output-exists", f"{given.out} exists: choose another name")
    found = list(rows(Path(sysconfig.get_path("stdlib"))))
    if given.limit is not None and given.limit < len(found):
        found = [found[index * len(found) // given.limit] for index in range(given.limit)]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, "".join(json.dumps(row) + "\n" for row in found))
    size = sum(len(text) for row in found for text in row.values())
    print(f"wrote {given.out}: {len(found):,} docstrings of Python {sys.version.split()[0]}, {size:,} characters")
    return 0

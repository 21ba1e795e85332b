"""All sentences that a user's mistake can bring, by code, as the sources write them.

`python -m tests.support.sentences` writes the golden file again after a sentence has changed on purpose.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "structure" / "error_sentences.txt"
PACKAGES = ("coretrain", "torchtrain", "jaxtrain", "parity", "twintrain", "bench")
KINDS = ("UserError", "PeerError", "DamagedCheckpoint", "Fault", "Refused", "conflict")


def written(node: ast.expr) -> str:
    """A sentence as its f-string shows it, `{name}` where a value goes."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(written(part) for part in parts)
        case ast.FormattedValue(value=value):
            return "{" + ast.unparse(value) + "}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return written(left) + written(right)
    return "{" + ast.unparse(node) + "}"


def raised() -> Iterator[tuple[str, str, str]]:
    """(code, sentence, file) of each place that makes a `UserError`."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                code, sentence = node.args
                if not isinstance(code, ast.Constant):
                    continue  # hands on the code and the sentence of another
                yield written(code), written(sentence), path.relative_to(ROOT).as_posix()


def golden() -> str:
    """The golden file's text: codes in order, each with its sentence below it."""
    return "".join(f"{code}\n    {sentence}\n" for code, sentence, _ in sorted(raised()))


if __name__ == "__main__":
    GOLDEN.write_text(golden())

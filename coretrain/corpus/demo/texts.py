"""Texts that every Python brings: the topics of its reference manual, and what its modules say of themselves."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SKIPPED = {
    *("encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("lib2to3", "idlelib", "turtledemo", "ensurepip", "tkinter", "pydoc_data", "__phello__", "config"),
}
QUOTES = re.compile(rb'"""')
FEWEST_QUOTES = 6
"""Of a file that is worth parsing."""
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
PLAIN = re.compile(r"[A-Z][A-Za-z' ,-]+\.")


@dataclass(frozen=True)
class Text:
    """A title, and paragraphs; those with several indented lines are code."""

    title: str
    paragraphs: tuple[str, ...]

    @property
    def words(self) -> int:
        """How many words it has."""
        return sum(len(one.split()) for one in self.paragraphs)


@cache
def texts(fewest: int = 40) -> tuple[Text, ...]:
    """Every text of at least `fewest` words, in a fixed order. It depends on nothing but this Python."""
    return tuple(one for one in (*_topics(), *_builtins(), *_modules()) if one.words >= fewest)


def sentences(found: Sequence[Text], least: int = 8, most: int = 30) -> list[str]:
    """Whole sentences of plain words, each once, sorted."""
    kept = set[str]()
    for text in found:
        for paragraph in text.paragraphs:
            for one in SENTENCE.split(" ".join(paragraph.split())):
                if least <= one.count(" ") + 1 <= most and PLAIN.fullmatch(one):
                    kept.add(one)
    return sorted(kept)


def _text(title: str, *parts: str | None) -> Text:
    whole = "\n\n".join(part.expandtabs().strip("\n") for part in parts if part)
    return Text(title, tuple(one for one in re.split(r"\n\s*\n", whole) if one.strip()))


def _topics() -> Iterator[Text]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some systems have it in another package
        return
    for name in sorted(topics):
        yield _text(f"Topic {name}", topics[name])


def _builtins() -> Iterator[Text]:
    for name in sorted(vars(builtins)):
        thing = getattr(builtins, name)
        if isinstance(thing, type) and thing.__name__ == name:
            own = [vars(thing)[key] for key in sorted(vars(thing)) if not key.startswith("_")]
            yield _text(f"builtins.{name}", thing.__doc__, *(getattr(one, "__doc__", None) for one in own))


def _modules() -> Iterator[Text]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for parts, path in sorted(_files(root)):
        if parts[-1].startswith("_sysconfigdata"):  # it holds this machine's paths
            continue
        try:
            raw = path.read_bytes()
            tree = ast.parse(raw) if len(QUOTES.findall(raw)) >= FEWEST_QUOTES else ast.Module([], [])
        except (OSError, SyntaxError, ValueError):
            continue
        yield from _of_module(".".join(part for part in parts if part != "__init__"), tree)


def _files(root: Path) -> Iterator[tuple[tuple[str, ...], Path]]:
    """(parts of a module's name, its file) for each."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED]
        for name in names:
            if name.endswith(".py"):
                path = Path(folder, name)
                yield path.relative_to(root).with_suffix("").parts, path


def _of_module(name: str, tree: ast.Module) -> Iterator[Text]:
    yield _text(name, ast.get_docstring(tree))
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inner = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            yield _text(f"{name}.{node.name}", ast.get_docstring(node), *(ast.get_docstring(one) for one in inner))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _text(f"{name}.{node.name}", ast.get_docstring(node))

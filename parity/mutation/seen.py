"""Which tests can see a place: those that execute its line, as `recorder.py` has recorded it."""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json
from parity.mutation.places import Place

PACKAGES = ("coretrain", "torchtrain", "jaxtrain")
"""What is mutated."""
NO_JUDGES = ("tests/structure/", "tests/parity/test_mutants", "tests/commands/test_package")
"""Tests of the files as texts, and of this engine."""
CORE_TESTS = (
    *(f"parity/ladder/test_{name}.py" for name in ("exact", "identity", "kernels", "rounding", "dtypes")),
    *(f"parity/ladder/test_{name}*.py" for name in ("fields", "large", "trajectory")),
    *(f"tests/stacks/test_{name}.py" for name in ("attention", "loss", "logprobs", "optimizer")),
    *("tests/contract/test_schedule*.py", "tests/contract/test_optimizer*.py", "tests/data/test_order*.py"),
    "tests/data/test_batches.py",
)
"""Files of tests, as globs, that judge attention, loss, optimizer, schedule and data order; what others see of them
is found when all are recorded.
"""
Functions = dict[str, tuple[int, int]]


def sources(root: Path) -> Iterator[tuple[str, bytes]]:
    """Every file that may be mutated, with its text."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path.read_bytes()


def functions_of(source: bytes) -> Functions:
    """First and last line of each function's body, by its name within its classes and functions."""
    found: Functions = {}

    def walk(node: ast.AST, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}".lstrip(".")
                if not isinstance(child, ast.ClassDef):
                    found[inner] = child.body[0].lineno, child.end_lineno or child.lineno
            walk(child, inner)

    walk(ast.parse(source), "")
    return found


def fingerprints(root: Path) -> dict[str, tuple[str, Functions]]:
    """By file: a hash of its text, and its functions; so that what was recorded before an edit can still be used."""
    return {file: (hashlib.sha256(text).hexdigest()[:16], functions_of(text)) for file, text in sources(root)}


@dataclass
class Part:
    """What one recorded session has seen."""

    lines: dict[str, dict[int, list[str]]]
    sources: Mapping[str, tuple[str, Functions]]


@dataclass
class Seen:
    """Everything that was recorded: tests that passed, their seconds, and their lines."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    files: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Tests by package that they have been in."""
    recorded: set[str] = field(default_factory=set)
    """Files of tests that were recorded without marks to choose by."""
    failed: set[str] = field(default_factory=set)
    """Tests that failed as they were recorded, as by a time limit: they judge nothing."""

    @functools.cached_property
    def _now(self) -> dict[str, tuple[str, Functions]]:
        return fingerprints(self.root)

    @functools.cached_property
    def _used(self) -> dict[str, list[tuple[str, int]]]:
        """Where each name is read, in all sources."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for file, text in sources(self.root):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                    found[node.id if isinstance(node, ast.Name) else node.attr].append((file, node.lineno))
        return found

    @functools.cached_property
    def _idle(self) -> set[str]:
        """Tests that execute nothing of any package."""
        return self.seconds.keys() - set().union(*self.files.values())

    @functools.cached_property
    def _imports(self) -> dict[str, set[tuple[str, str]]]:
        """(module, name) that each recorded file of tests imports."""
        found: dict[str, set[tuple[str, str]]] = {}
        for test_file in {test.partition("::")[0] for test in self.seconds}:
            if (path := self.root / test_file).is_file():
                nodes = ast.walk(ast.parse(path.read_bytes()))
                imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
                found[test_file] = {(str(node.module), name.name) for node in imports for name in node.names}
        return found

    def _at(self, file: str, first: int, last: int, function: str = "") -> set[str]:
        """Tests that executed one of these lines; where the file was another when it was recorded, the function's."""
        found: set[str] = set()
        for part in self.parts:
            lines = part.lines.get(file)
            if not lines:
                continue
            was, now = part.sources.get(file, ("", {})), self._now[file]
            begin, end = first, last
            if was[0] != now[0]:
                inside = function or _function_at(now[1], first)
                if inside not in was[1]:
                    continue
                begin, end = was[1][inside]
            for line in range(begin, end + 1):
                found.update(lines.get(line, ()))
        return found

    def tests(self, place: Place) -> list[str]:
        """Tests that execute a place, the quickest first. For what runs at import: tests that use what it defines."""
        if place.function:
            found = self._at(place.file, *place.lines, place.function)
        else:
            found = set()
            for name in place.names:
                for file, line in self._used.get(name, ()):
                    found |= self._at(file, line, line)
                found |= self._importers(place.file, name)
                if found:
                    break
            found = found or {
                test for part in self.parts for at in part.lines.get(place.file, {}).values() for test in at
            }
        return sorted((test for test in found if test in self.seconds), key=lambda test: (self.seconds[test], test))

    def _importers(self, file: str, name: str) -> set[str]:
        """Tests whose own file imports a name from the module `file`: they read it without executing a line of it."""
        module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return {test for test in self.seconds if (module, name) in self._imports.get(test.partition("::")[0], ())}

    def lost(self, place: Place) -> set[str]:
        """Tests that execute a place and failed as they were recorded."""
        return self._at(place.file, *place.lines, place.function) & self.failed if place.function else set()

    def whole(self) -> bool:
        """Whether all files of tests were recorded, so that a place without a test has none."""
        return all(file in self.recorded for file in files_of_tests(self.root) if not _is_long(self.root / file))

    def shared(self, place: Place, direct: Iterable[str]) -> list[str]:
        """Tests that may take what `direct` ones have made: those of their files that have been in the same package, as
        what is compiled is traced once, or in none, as they look at what a fixture of their file has let run.
        """
        direct = set(direct)
        files = {test.partition("::")[0] for test in direct}
        near = self.files[place.file.partition("/")[0]] | self._idle
        more = (t for t in near - direct if t.partition("::")[0] in files and t in self.seconds)
        return sorted(more, key=lambda test: (self.seconds[test], test))


def files_of_tests(root: Path, words: Sequence[str] = ()) -> list[str]:
    """Files of tests under these folders and files, `core` being `CORE_TESTS`; default: all."""
    found: set[str] = set()
    named = [name for word in words for name in (CORE_TESTS if word == "core" else (word,))]
    for word in named or ("parity/ladder", "tests"):
        for path in _found(root, word):
            found.update(
                p.relative_to(root).as_posix() for p in ([path] if path.is_file() else path.rglob("test_*.py"))
            )
    return sorted(name for name in found if not name.startswith(NO_JUDGES))


def _found(root: Path, word: str) -> list[Path]:
    """Files and folders inside `root` that a glob finds; none for what is no pattern."""
    if not word or word.startswith("/") or ".." in word.split("/"):
        return []
    try:
        return list(root.glob(word))
    except (ValueError, IndexError, NotImplementedError):  # as of `**a` and of `.`
        return []


def _is_long(path: Path) -> bool:
    """Whether all tests of a file are left out of every session that doesn't ask for them."""
    return (
        re.search(r"^pytestmark = pytest\.mark\.(slow|tpu_compiler)", path.read_text("utf-8"), re.MULTILINE) is not None
    )


def _function_at(functions: Functions, line: int) -> str:
    around = [(last - first, name) for name, (first, last) in functions.items() if first <= line <= last]
    return min(around)[1] if around else ""


def load(root: Path, folder: Path) -> Seen:
    """What lies in `folder`. Raises `UserError` where there is nothing, or something else."""
    from coverage.exceptions import CoverageException

    seen = Seen(root)
    for facts in sorted(folder.glob("*.json")):
        if not facts.with_suffix(".coverage").is_file():
            continue
        try:
            _add(seen, facts)
        except (CoverageException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "parity/mutation-lines-unreadable",
                f"{facts} isn't what --record leaves ({type(error).__name__}: {error}): remove it, and record again "
                "with --record",
            ) from None
    if not seen.seconds:
        raise UserError(
            "parity/mutation-without-lines",
            f"{folder} doesn't say which test executes which line: run python -m parity.mutation --record first",
        )
    return seen


def _add(seen: Seen, facts: Path) -> None:
    """One recorded session."""
    from coverage.data import CoverageData

    data = CoverageData(str(facts.with_suffix(".coverage")))
    data.read()
    noted = from_json(facts.read_bytes())
    if noted.get("marks") == "":
        seen.recorded.update(test.partition("::")[0] for test in noted["tests"])
    was = Path(noted["root"])
    for test, (seconds, outcome) in noted["tests"].items():
        if outcome == "passed" and not test.startswith(NO_JUDGES):
            seen.seconds[test] = seconds
        elif outcome == "failed":
            seen.failed.add(test)
    lines: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        if not Path(path).is_relative_to(was):
            continue
        file = Path(path).relative_to(was).as_posix()
        found = {}
        for line, contexts in data.contexts_by_lineno(path).items():
            names = {
                name.removesuffix(" (call)").removesuffix(" (setup)").removesuffix(" (teardown)") for name in contexts
            }
            if names := names & noted["tests"].keys():
                found[line] = sorted(names)
                seen.files[file.partition("/")[0]].update(names)
        lines[file] = found
    at = {
        file: (digest, {n: tuple(ends) for n, ends in functions.items()})
        for file, (digest, functions) in noted["sources"].items()
    }
    seen.parts.append(Part(lines, at))

"""The tree of files: who may import whom, that nothing goes round in circles, and how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.support.commands import ROOT

PACKAGES = ("coretrain", "jaxtrain", "torchtrain", "parity", "twintrain")
LONGEST = 400
BENT = re.compile(r"sys\.path\s*(\.\s*(insert|append|extend)\b|\[[^]]*\]\s*=|\+?=)")
TEST = re.compile(r"(^|\.)(test_\w+|conftest)$")
QUOTED = re.compile(r"^[ \t>]*(?:from|import)[ \t]+([\w.]+)(?:[ \t]+import[ \t]+\(?([\w, \t]+))?", re.MULTILINE)


@cache
def files() -> tuple[str, ...]:
    """Every Python file of the repository, as git has them; where there is no git, as they lie there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT) if (ROOT / ".git").exists() else None
    if listed is not None and listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        found = list(ROOT.rglob("*.py"))
    names = (path.relative_to(ROOT) for path in found if path.is_file())
    return tuple(sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)))


def read(name: str) -> str:
    """The text of a file."""
    return (ROOT / name).read_text(encoding="utf-8")


def imported(text: str) -> Iterator[str]:
    """Names of what a file imports, or a program in one of its strings: modules, and what is taken out of them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(f"{node.module}.{name.name}" for name in node.names))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for module, names in QUOTED.findall(node.value):
                yield from (module, *(f"{module}.{name.split()[0]}" for name in names.split(",") if name.strip()))


def circle(*packages: str) -> list[str]:
    """Modules that import each other round in a circle, also from inside functions; none where there is none."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_whole_repository_is_looked_at():
    known = {"conftest.py", "coretrain/training/loop.py", "parity/ladder/test_exact.py", "tests/support/commands.py"}
    assert known <= set(files())
    assert Path(__file__).resolve().relative_to(ROOT).as_posix() in files()


def test_no_test_is_imported():
    """Whatever imports a test or a conftest.py, be it another test, shares its fixtures, its marks and its order."""
    found = [f"{name}: {module}" for name in files() for module in imported(read(name)) if TEST.search(module)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("from tests.data.TEST_chat import x", True),
        ("import tests.CONFTEST as shared", True),
        ("from parity.ladder import (\n    TEST_zero,\n)", True),
        ("def inside():\n    from CONFTEST import x", True),
        ("PROGRAM = '''\nimport os\nfrom tests.data.TEST_chat import x\n'''", True),
        ("PROGRAM = '''\nfrom tests.data import x, TEST_chat\n'''", True),
        ("from tests.support.corpora import write_texts", False),
        ("from coretrain.latest import TESTED\nx = 'from a TEST_y of ours'", False),
    ],
)
def test_an_import_of_a_test_is_seen(text, seen):
    names = text.replace("TEST_", "test_").replace("CONFTEST", "conftest")  # or this file would be one that imports
    assert any(TEST.search(module) for module in imported(names)) is seen


def test_no_file_is_too_long():
    too_long = [name for name in files() if len(read(name).splitlines()) > LONGEST]
    assert too_long == [], f"more than {LONGEST} lines: cut them by subject"


def test_no_module_is_part_of_a_circle():
    """An import inside a function is an arrow too: it hides a circle, it doesn't undo it."""
    assert circle(*PACKAGES) == []


def test_a_circle_inside_functions_is_seen(tmp_path, monkeypatch):
    package = tmp_path / "goes_round"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from goes_round import two\n")
    (package / "two.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert circle("goes_round") == []
    (package / "two.py").write_text("def late():\n    from goes_round.one import two\n")
    assert set(circle("goes_round")) == {"goes_round.one", "goes_round.two"}


def test_nothing_bends_the_path_of_imports():
    """Not in programs for other processes either: those have PYTHONPATH in their environment."""
    assert [name for name in files() if BENT.search(read(name))] == []


def test_no_two_files_of_tests_share_a_name():
    """Folders of tests are no packages: pytest would take the second for the first."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))

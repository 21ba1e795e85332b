"""A copy of some modules with one line of one of them changed: a planted bug, which tests must notice."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, and loads it with its source changed."""

    def __init__(self, name: str, source: str, origin: str) -> None:
        self.name, self.source, self.origin = name, source, origin

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=self.origin)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, self.origin, "exec"), module.__dict__)


@contextmanager
def planted(name: str, old: str, new: str, rooms: tuple[str, ...], kept: tuple[str, ...] = ()) -> Iterator[None]:
    """While it lasts, imports of modules in `rooms` give fresh copies, with `old` replaced by `new` in module `name`.

    `old` must stand there exactly once, so that a bug doesn't outlive the line that it is in. Modules that are `kept`
    are not copied, unless the bug is there.
    """
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {name}"
    before = {key: module for key, module in sys.modules.items() if key.startswith(rooms)}
    stay = [key for key in kept if key != name and key in before]
    finder = _Changed(name, source.replace(old, new), spec.origin)
    for key in before:
        if key not in stay:
            del sys.modules[key]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for key in [key for key in sys.modules if key.startswith(rooms)]:
            del sys.modules[key]
        sys.modules.update(before)
        for key, module in before.items():  # a package's attribute is its submodule
            package, _, last = key.rpartition(".")
            if package in sys.modules:
                setattr(sys.modules[package], last, module)

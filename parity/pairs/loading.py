"""Objects that a command line names, `package.module:name` or `file.py:name`, and arrays in a .npz."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError, meant
from coretrain.base.files import typed_path
from coretrain.base.parse import shown


def named(option: str, text: str) -> Any:
    """The object that an option names. Raises `UserError` where there is no such module, file or name in it."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UserError(
            "parity/object-name-wrong",
            f"{option} {shown(text)} names no object: write package.module:name, or file.py:name",
        )
    if place.endswith(".py"):
        module = _from_file(option, typed_path(place))
    else:
        try:
            module = importlib.import_module(place)
        except Exception as error:  # whatever the module's own code raises
            if not (isinstance(error, ModuleNotFoundError) and f"{place}.".startswith(f"{error.name}.")):
                raise _failed(option, place, error) from error
            raise UserError(
                "parity/object-module-missing",
                f"{option}: there is no module {shown(place)} here: name a file, as in model.py:{name}, or set "
                "PYTHONPATH",
            ) from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(
                "parity/object-missing",
                f"{option}: {shown(place)} has no {shown(name)}: {meant(part, [n for n in dir(found) if n[0] != '_'])}"
                "correct it",
            )
        found = getattr(found, part)
    return found


def _failed(option: str, place: str, error: Exception) -> UserError:
    reason = next(iter(str(error).splitlines()), "")[:300]
    if not isinstance(error, ImportError | SyntaxError):
        reason = f"{type(error).__name__}: {reason}"
    return UserError(
        "parity/object-import-failed",
        f"{option}: importing {shown(place)} fails ({reason}): mend that, or install what it needs",
    )


def _from_file(option: str, path: Path) -> Any:
    if not path.is_file():
        raise UserError("parity/object-file-missing", f"{option}: there is no file {path}: correct its name")
    name = f"twintrain_pair_{path.stem}_{abs(hash(path.resolve()))}"
    if name not in sys.modules:  # two options may name one file
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise _failed(option, str(path), error) from error
    return sys.modules[name]


def made(found: Any) -> Any:
    """What a class or a function without required arguments makes; anything else as it is."""
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return found
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return found
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    varied = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return found() if not needed and (inspect.isclass(found) or not varied) else found


def arrays(option: str, text: str) -> dict[str, np.ndarray]:
    """The named arrays of a .npz file. Raises `UserError` where it is none."""
    path = typed_path(text)
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with file:
            found = {name: file[name] for name in file}
        if not found or not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("it holds no arrays")
    except Exception as error:  # numpy, zipfile and Python's own parser of the arrays' headers raise all kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            "parity/pair-inputs-unreadable",
            f"{option} {path} can't be read ({reason}): write it with numpy.savez(FILE, input_ids=...)",
        ) from None
    return found

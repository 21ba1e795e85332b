"""A user's function, found in the working folder and called as TRL calls reward functions.

It gets lists by name: `prompts` and `completions` (texts; lists of messages where the prompt is one), `completion_ids`,
`ended`, and one list for each other field of the rows, with None where a row lacks it. It gets only what it takes: all
with `**kwargs`. It gives a number for each completion.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


class Refused(Exception):
    """What is wrong with the function, whatever the answers: a code and a sentence."""


class _Here(importlib.abc.MetaPathFinder):
    """Finds modules of one folder: all, or the one package that is named."""

    def __init__(self, folder: str, only: str | None = None) -> None:
        self.folder, self.only = folder, only

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As Python's own finder of files, in this folder."""
        if path is not None or self.only not in (None, fullname):
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [self.folder])


def load(word: str, folder: str) -> tuple[Callable[..., Any], str]:
    """The function that `module:function` names, and a hash of its file.

    Its module is looked for in `folder` first; what that imports is looked for there last, so that no file there is
    taken for one of Python's or of a package. Raises `Refused`.
    """
    module_name, _, name = word.rpartition(":")
    package = module_name.partition(".")[0]
    if importlib.machinery.PathFinder.find_spec(package, [folder]) and package in sys.stdlib_module_names:
        raise Refused(
            "alignment/reward-module-hidden",
            f"align.reward = {word}: {package} is a module of Python's own: give your file another name",
        )
    sys.meta_path.insert(0, _Here(folder, package))
    sys.meta_path.append(_Here(folder))
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # whatever runs at the import, sys.exit too
        lacks = error.name if isinstance(error, ModuleNotFoundError) else None
        if lacks and f"{module_name}.".startswith(f"{lacks}."):
            raise Refused(
                "alignment/reward-module-missing",
                f"align.reward = {word}: there is no {module_name.replace('.', '/')}.py in {folder}, and no package of "
                "that name: give module:function of a file there",
            ) from None
        raise Refused(
            "alignment/reward-module-broken",
            f"align.reward = {word}: its module can't be imported ({said(error)}): mend it",
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        there = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[:1] != "_"]
        raise Refused(
            "alignment/reward-function-missing",
            f"align.reward = {word}: {module_name} has no function {name}, only {', '.join(there) or 'none'}",
        )
    return function, _hash(module)


def _hash(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if not file:
        return ""
    with open(file, "rb") as source:
        return hashlib.blake2b(source.read(), digest_size=8).hexdigest()


def said(error: BaseException) -> str:
    """An exception in one line, with the place of the user's code that raised it."""
    reason = next(iter(str(error).splitlines()), "")
    frame, place, name = error.__traceback__, "", type(error).__name__
    while frame:
        file = frame.tb_frame.f_code.co_filename
        place = "" if file == __file__ else f", line {frame.tb_lineno} of {file}"
        frame = frame.tb_next
    return f"{name}: {reason}{place}" if reason else f"{name}{place}"


def call(function: Callable[..., Any], answers: Sequence[Mapping[str, Any]], word: str) -> list[Any]:
    """What the function gives for answers: numbers, one for each, as it should be. Raises `Refused` where it wants what
    there isn't, and whatever it raises.
    """
    columns = columns_of(answers)
    kinds = inspect.Parameter
    try:
        wanted = list(inspect.signature(function).parameters.values())
    except ValueError:  # of a built-in
        wanted = []
    if not any(one.kind is kinds.VAR_KEYWORD for one in wanted):
        named = [one for one in wanted if one.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        for one in named:
            if one.default is kinds.empty and one.name not in columns:
                raise Refused(
                    "alignment/reward-argument-missing",
                    f"align.reward = {word}: it takes {one.name}, which the rows haven't got, only "
                    f"{', '.join(columns)}: rename its argument or the field",
                )
        columns = {one.name: columns[one.name] for one in named if one.name in columns}
    given = function(**columns)
    if inspect.isawaitable(given):
        given = asyncio.run(_awaited(given))
    return _plain(given)


async def _awaited(given: Any) -> Any:
    return await given


def columns_of(answers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The arguments of a call, by name."""
    names = list(dict.fromkeys(name for one in answers for name in one["fields"] if name != "prompt"))
    return {
        "prompts": [one["prompt"] for one in answers],
        "completions": [_like_prompt(one) for one in answers],
        "completion_ids": [one["ids"] for one in answers],
        "ended": [one["ended"] for one in answers],
        **{name: [one["fields"].get(name) for one in answers] for name in names},
    }


def _like_prompt(one: Mapping[str, Any]) -> Any:
    listed = isinstance(one["prompt"], list)
    return [{"role": "assistant", "content": one["completion"]}] if listed else one["completion"]


def _plain(given: Any) -> list[Any]:
    """A list of what JSON has, of a list or an array of any library; what is no number is told by its type's name."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, list | tuple):
        raise TypeError(f"it gave {type(given).__name__}, and no list of numbers")
    return [_number(one) for one in given]


def _number(one: Any) -> Any:
    if hasattr(one, "item"):
        one = one.item()
    if isinstance(one, bool | int | float):
        try:
            return float(one)
        except OverflowError:
            return float("inf")
    return {"kind": "None" if one is None else f"a {type(one).__name__}"}


def seed(request: bytes) -> None:
    """Let what the function draws from Python's or numpy's common generator depend on the answers alone."""
    key = int.from_bytes(hashlib.blake2b(request, digest_size=4).digest(), "little")
    random.seed(key)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(key)

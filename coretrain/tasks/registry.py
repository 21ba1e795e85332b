"""Tasks by the word that a user types: `task:sort`, `task:sort?length=8&rows=5000`, `task:reasoning_gym/chain_sum`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.config.fields import Section
from coretrain.tasks.gym import PREFIX, Gym
from coretrain.tasks.strings import Copy, Reverse, Sort
from coretrain.tasks.sums import Sums
from coretrain.tasks.task import Task

WORD = "task:"
TASKS: dict[str, type[Task]] = {task.name: task for task in (Sort, Sums, Copy, Reverse)}
Named = TypeVar("Named", bound=Section)
EMPTY: Mapping[str, Any] = MappingProxyType({})


def is_task(word: str) -> bool:
    """Whether `data.source` names a task."""
    return word.startswith(WORD)


def is_task_name(word: str) -> bool:
    """Whether a word without `task:` is the name of a task, with or without options."""
    name = word.partition("?")[0]
    return name in TASKS or name.startswith(PREFIX)


def open_task(word: str) -> Task:
    """The task of `NAME[?key=value&...]`, with or without `task:` before it. Raises `UserError` naming the fault."""
    name, _, query = word.removeprefix(WORD).partition("?")
    known = [*TASKS, f"{PREFIX}NAME"]
    if name.startswith(PREFIX):
        kind: type[Task] = Gym
        given: dict[str, Any] = {"family": name.removeprefix(PREFIX)}
    elif name in TASKS:
        kind, given = TASKS[name], {}
    else:
        raise UserError(
            "tasks/unknown-task",
            f"there is no task {shown(name)}: {meant(name, list(TASKS))}Known are {', '.join(known)}",
        )
    return with_options(kind, f"task {name}", word, query, given)


def with_options(kind: type[Named], what: str, word: str, query: str, given: Mapping[str, Any] = EMPTY) -> Named:
    """A `kind` with the options of `key=value&key=value` beside those `given`. Raises `UserError` that names `word`, as
    it was typed, and the option.
    """
    options: dict[str, Any] = dict(given)
    for pair in query.split("&") if query else ():
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise UserError(
                "tasks/options-malformed", f"{shown(word)}: write options as NAME?key=value&key=value, no blank between"
            )
        if key in options:
            raise UserError("tasks/option-given-twice", f"{shown(word)} gives {shown(key)} twice: take one out")
        options[key] = value
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
    option, known = ".".join(map(str, first["loc"])), list(kind.model_fields)
    if first["type"] == "extra_forbidden":
        raise UserError(
            "tasks/option-unknown",
            f"{shown(word)}: {what} has no option {shown(option)}: {meant(option, known)}Its options are "
            f"{', '.join(known)}",
        )
    if first["type"] == "missing":
        raise UserError("tasks/option-missing", f"{shown(word)}: {what} needs {option}: write ?{option}=...")
    reason = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    raise UserError("tasks/option-value-wrong", f"{shown(word)}: {option} should be {reason}: mend it")

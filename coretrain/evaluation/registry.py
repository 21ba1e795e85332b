"""Tasks by the words that a user types: files, folders of them, generated tasks, the small set of the package, CORE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError, meant
from coretrain.base.files import typed_path
from coretrain.base.parse import shown
from coretrain.data.files import RECORDS, of_kind
from coretrain.evaluation.core import core_tasks, find_bundle
from coretrain.evaluation.task import Row, Settings, Task, read_task
from coretrain.tasks.registry import is_task, open_task

OWN = Path(__file__).parent / "small"
"""Tasks of the package, which need no download."""
GENERATED = 500
"""Rows of a generated task that are asked where its options don't say."""
FILES = (*RECORDS, ".txt")


def open_tasks(words: Sequence[str], folder: Path | None, changed: Mapping[str, Any]) -> list[Task]:
    """The tasks that the words name, with settings `changed`; `folder` is looked into first.

    Raises `UserError` where one is not there, or is named twice.
    """
    found: list[Task] = []
    for word in words:
        found += _named(word, folder, changed)
    names = [task.name for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError("evaluation/task-named-twice", f"task {twice} is named twice: take one out, or rename its file")
    if changed and found and all(task.form == "text" for task in found):
        raise UserError(
            "evaluation/text-has-no-settings", f"{', '.join(sorted(changed))} is of tasks with rows: leave it out"
        )
    return found


def is_here(word: str, folder: Path | None) -> bool:
    """Whether a word names a task of this machine's files, or one that is generated."""
    return is_task(word) or word == "core" or typed_path(word).exists() or word in known_tasks(folder)


def known_tasks(folder: Path | None) -> list[str]:
    """Names that can be given without a path."""
    places = [one for one in (folder, OWN) if one is not None and one.is_dir()]
    files = [path for place in places for path in sorted(place.iterdir()) if of_kind(path, FILES)]
    return [*dict.fromkeys(path.name.split(".")[0] for path in files)]


def _named(word: str, folder: Path | None, changed: Mapping[str, Any]) -> list[Task]:
    if is_task(word):
        return [_generated(word, changed)]
    if word == "core":
        bundle = find_bundle(folder) if folder is not None else None
        if bundle is None:
            raise UserError(
                "evaluation/core-bundle-missing",
                "core needs DCLM's files: give --task-folder the folder of core.yaml, eval_meta_data.csv and eval_data",
            )
        if changed:
            raise UserError(
                "evaluation/core-settings-fixed", f"core fixes its settings: leave out {', '.join(sorted(changed))}"
            )
        return core_tasks(bundle)
    path = typed_path(word)
    if path.is_file():
        return [read_task(path, changed)]
    if path.is_dir():
        files = [one for one in sorted(path.iterdir()) if one.is_file() and of_kind(one, FILES)]
        if not files:
            raise UserError("evaluation/folder-without-tasks", f"{path} has no file of {' '.join(FILES)}: name another")
        return [read_task(one, changed) for one in files]
    for place in (folder, OWN):
        for ending in FILES:
            if place is not None and (place / f"{word}{ending}").is_file():
                return [read_task(place / f"{word}{ending}", changed)]
    known = known_tasks(folder)
    raise UserError(
        "evaluation/task-unknown",
        f"there is no task {shown(word)}: {meant(word, known)}Here are {', '.join(known)}. Give a file's path or "
        "--task-folder; where lm-eval is installed, its names are known too",
    )


def _generated(word: str, changed: Mapping[str, Any]) -> Task:
    """A task that makes its own questions, of which held-out ones are asked."""
    task = open_task(word)
    count = min(GENERATED, task.rows)
    rows: list[Row] = []
    for index in range(task.rows - count, task.rows):
        prompt, fields = task.prompt(index)
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        rows.append(Row(len(rows) + 1, text, answers=(str(fields["answer"]),)))
    given = {"delimiter": "", "tokens": 16, "until": ("\n",)} | dict(changed)
    settings = Settings.model_validate(given)
    name = word.removeprefix("task:").partition("?")[0]
    return Task(name, "generation", settings, rows, facts={"task": word})

"""Records of files: the rows of conversations, and of what else comes as objects with named fields."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.data.files import PACKED, RECORDS, json_rows, of_kind, parquet_rows, readable, sorted_out, stats, total
from coretrain.data.hub import HUB, hub_listing, hub_parts, hub_rows
from coretrain.tasks.registry import is_task, open_task


@dataclass(frozen=True)
class Rows:
    """Records of files, of a task or of a dataset: `rows()` starts a fresh pass over (file and line, record)."""

    name: str
    listing: tuple[Any, ...]
    rows: Callable[[], Iterator[tuple[str, Any]]]
    size: int | None = None
    passed_over: str = ""


def open_rows(name: str, form: str = "chat") -> Rows:
    """The records that `data.source` names, as `data.format` = `form` reads them; a task's are generated.

    Raises `UserError` when they are missing or of no known kind.
    """
    if is_task(name):
        task = open_task(name)
        nearly = task.rows * len(json.dumps(task.row(form, 0)))  # bytes: whether processes are worth starting
        return Rows(name, ("task", *task.facts(form)), functools.partial(task.generated, form), nearly)
    if name.startswith(HUB):
        listing = ("hf", *hub_parts(name), *hub_listing(name))
        return Rows(name, listing, lambda: ((f"{name}, row {n}", row) for n, row in enumerate(hub_rows(name), 1)))
    path, kinds, passed_over = typed_path(name), " ".join(RECORDS), ""
    if path.is_file() and of_kind(path, RECORDS):
        files, root = [path], path.parent
    elif path.is_dir():
        (files, passed_over), root = sorted_out(path, RECORDS), path
    elif path.exists():
        raise UserError(
            "data/chat-file-kind-unknown",
            f"data.source = {name}: data.format = {form} reads {kinds}: give a file or a folder of these",
        )
    else:
        raise UserError(
            "data/chat-source-not-found",
            f"data.source = {name}: no such file or folder: data.format = {form} needs one of {kinds}",
        )
    if not files:
        raise UserError("data/chat-folder-without-files", f"data.source = {name}: no {kinds} file in that folder")

    def rows() -> Iterator[tuple[str, Any]]:
        for file in files:
            with readable(file):
                yield from parquet_rows(file) if of_kind(file, ".parquet") else json_rows(file)

    size = None if any(of_kind(file, PACKED) for file in files) else total(files)
    return Rows(name, tuple(stats(files, root)), rows, size, passed_over)

"""A task: one function from files to files. What it makes depends on what it is given and on nothing else."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import TEMPORARY, sha256_of, sync_folder, write_atomically
from coretrain.base.parse import from_json, read_bytes

LEDGER = "ledger"
"""The folder of what is finished: one file a task, written after its outputs."""
Facts = dict[str, Any]
"""What a task counted: JSON."""
Function = Callable[[Mapping[str, Any], list[Path], list[Path]], Facts]
"""(arguments, files to read, files to write) to facts."""


@dataclass(frozen=True)
class Task:
    """One function, to be called once, in any process that sees the folder."""

    stage: str
    index: int
    function: str
    """`module:name` of a `Function`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    """Files in the folder, made by earlier tasks."""
    outputs: Sequence[str] = ()
    key: str = ""
    """Hash of everything that its outputs depend on; the ledger gives it."""

    def __str__(self) -> str:
        return f"task {self.index} of stage {self.stage}"

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(vars(self), sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes) -> Task:
        """What `to_json` wrote."""
        return Task(**from_json(text))


@dataclass(frozen=True)
class Result:
    """What a finished task left, as its file in the ledger says."""

    key: str
    outputs: Mapping[str, str]
    """SHA-256 by file, hex."""
    facts: Facts
    seconds: float = 0.0
    """It took so long; the one thing that differs from run to run."""


def entry_of(folder: Path, task: Task) -> Path:
    """The task's file in the ledger."""
    return folder / LEDGER / task.stage / f"{task.index:06d}.json"


def keyed(task: Task, hashes: Mapping[str, str], code: str) -> Task:
    """The task with its key. `hashes`: SHA-256 of each of its inputs; `code`: the version of the code that it runs."""
    parts = [task.function, dict(task.arguments), [hashes[name] for name in task.inputs], list(task.outputs), code]
    digest = hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
    return Task(task.stage, task.index, task.function, task.arguments, task.inputs, task.outputs, digest)


def result_of(folder: Path, task: Task) -> Result | None:
    """What the task left, where it has finished with this key and every output is there, whole; otherwise None."""
    try:
        raw = from_json(read_bytes(entry_of(folder, task)))
        result = Result(**raw)
        if result.key != task.key or set(result.outputs) != set(task.outputs):
            return None
        whole = all(sha256_of(folder / name) == digest for name, digest in result.outputs.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # cut short, damaged or not there: it is done again
    return result if whole else None


def perform(folder: Path, task: Task) -> Result:
    """Call the function, put its outputs in place, and note it in the ledger. What the function raises passes."""
    began = time.monotonic()
    module, _, name = task.function.partition(":")
    function: Function = getattr(importlib.import_module(module), name)
    targets = [folder / name for name in task.outputs]
    parts = [target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}") for target in targets]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        facts = function(task.arguments, [folder / name for name in task.inputs], parts)
        hashes = {name: _put(part, folder / name) for name, part in zip(task.outputs, parts, strict=True)}
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    for place in {target.parent for target in targets}:
        sync_folder(place)
    result = Result(task.key, hashes, facts, round(time.monotonic() - began, 3))
    entry = entry_of(folder, task)
    entry.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(entry, json.dumps(vars(result), sort_keys=True))
    return result


def _put(part: Path, target: Path) -> str:
    """Give a finished file its name; its SHA-256."""
    digest = sha256_of(part)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    return digest


def fault_of(error: BaseException) -> dict[str, Any]:
    """An error as JSON, to be raised again in another process."""
    if isinstance(error, UserError):
        return {"kind": "user", "code": error.code, "text": str(error)}
    if isinstance(error, OSError):
        name = error.filename if isinstance(error.filename, str) else str(error.filename or "")
        return {"kind": "os", "number": error.errno, "text": error.strerror or str(error), "file": name}
    if isinstance(error, MemoryError):
        return {"kind": "memory", "text": str(error)}
    import traceback

    return {"kind": "bug", "text": "".join(traceback.format_exception(error))}


def raised(fault: Mapping[str, Any], task: Task) -> Exception:
    """The error that `fault_of` told."""
    if fault["kind"] == "user":
        return UserError(fault["code"], fault["text"])
    if fault["kind"] == "os":
        return OSError(fault["number"], fault["text"], fault["file"] or None)
    if fault["kind"] == "memory":
        return MemoryError(fault["text"])
    return TaskError(f"{task} failed:\n{fault['text']}")


class TaskError(Exception):
    """A fault of our own code in a task; the text holds the worker's traceback."""

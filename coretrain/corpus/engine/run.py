"""A run's stages: what is finished is passed over, the rest goes to an engine, and the progress is shown."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from coretrain.corpus.engine.code import code_version
from coretrain.corpus.engine.task import Result, Task, keyed, perform, result_of


class Engine(Protocol):
    """What carries tasks out, in any order."""

    def __enter__(self) -> Engine:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End every process that it has started."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, as they finish."""


@dataclass
class Here:
    """Tasks in this process, one after the other: for tests, and for a debugger."""

    folder: Path

    def __enter__(self) -> Here:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result."""
        for task in tasks:
            yield task, perform(self.folder, task)


@dataclass
class Run:
    """The tasks of one folder, stage after stage."""

    folder: Path
    engine: Engine
    say: Callable[[str], None] = lambda line: None
    code: str = field(default_factory=code_version)
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file made so far, by its name in the folder."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds that tasks took, by stage, summed over processes, also of an earlier run."""

    def stage(self, name: str, tasks: Sequence[Task], weights: Sequence[int] = (), unit: str = "") -> list[Result]:
        """The results of one stage's tasks, in the tasks' order, whichever were done now or earlier.

        `weights`: what each task counts for in the progress bar, such as bytes (`unit` "bytes").
        """
        todo: list[Task] = []
        results: dict[int, Result] = {}
        for task in (keyed(task, self.hashes, self.code) for task in tasks):
            if (found := result_of(self.folder, task)) is not None:
                results[task.index] = found
            else:
                todo.append(task)
        weight = dict(zip((task.index for task in tasks), weights or [1] * len(tasks), strict=True))
        if results and todo:
            self.say(f"{name}: {len(results)} of {len(tasks)} tasks are there already")
        with progress(name, sum(weight.values()), unit) as advance:
            advance(sum(weight[index] for index in results))
            for task, result in self.engine.run(todo) if todo else ():
                results[task.index] = result
                advance(weight[task.index])
        for result in results.values():
            self.hashes |= result.outputs
        self.seconds[name] = sum(result.seconds for result in results.values())
        return [results[task.index] for task in tasks]


@contextlib.contextmanager
def progress(name: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
    """A bar on stderr with rate and time left, where that is a terminal; the block moves it."""
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counted: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        row = bar.add_task(name, total=total)
        yield lambda amount: bar.advance(row, amount)

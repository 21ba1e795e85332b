"""Tasks in processes of this machine. One that is killed costs its task one more try, and the others nothing."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.connection
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.interrupts import ctrl_c_for_parent, end_with_parent
from coretrain.base.parse import from_json
from coretrain.corpus.engine.task import Result, Task, fault_of, perform, raised

TRIES = 2
"""Times that a task is begun whose process gets killed."""
WARM = ["coretrain.corpus.pipeline.warm"]
"""What the process loads that all workers are forked from: by name, as tasks name their functions."""


@dataclass
class Worker:
    """A process, the pipe to it, and the task that it has."""

    process: BaseProcess
    pipe: Connection
    task: Task | None = None


class Pool:
    """`workers` processes that stay for all stages of a run; they are started by the first task."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.count = folder, workers
        self._workers: list[Worker] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers:
            worker.pipe.close()  # an idle one ends by itself
            if worker.task is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, as they finish. Raises what a task raised; `UserError` where processes that do it
        are killed.
        """
        waiting, tried = deque(tasks), Counter[int]()
        while waiting or any(worker.task for worker in self._workers):
            while waiting and (idle := self._idle()):
                idle.task = waiting.popleft()
                tried[idle.task.index] += 1
                with contextlib.suppress(OSError):  # it has just died: seen below
                    idle.pipe.send_bytes(idle.task.to_json().encode())
            busy = {worker.pipe: worker for worker in self._workers if worker.task}
            for pipe in multiprocessing.connection.wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]  # wait() is typed for sockets too
                task = worker.task
                assert task is not None
                if (answer := _answer(worker.pipe)) is None:
                    self._died(worker, task, tried[task.index])
                    waiting.appendleft(task)
                    continue
                worker.task = None
                if "fault" in answer:
                    raise raised(answer["fault"], task)
                yield task, Result(**answer["result"])

    def _idle(self) -> Worker | None:
        for worker in self._workers:
            if worker.task is None:
                return worker
        if len(self._workers) >= self.count:
            return None
        self._workers.append(self._started())
        return self._workers[-1]

    def _started(self) -> Worker:
        """A new process. It isn't forked from this one, whose threads' locks would be copied, but on Linux from one
        that has no threads of Python and has loaded everything: a start takes hundredths of a second then.
        """
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        context.set_forkserver_preload(WARM)
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, str(self.folder)))
        resource_tracker.ensure_running()  # it would let Ctrl-C through again below
        with ctrl_c_for_parent():
            process.start()
        theirs.close()
        return Worker(process, ours)

    def _died(self, worker: Worker, task: Task, tries: int) -> None:
        """Forget a process that was killed. Raises `UserError` where its task has had its tries."""
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join(5)
        code = worker.process.exitcode
        if tries < TRIES:
            return
        by = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        memory = ", as the system does where memory runs out" if code == -9 else ""
        raise UserError(
            "corpus/worker-killed",
            f"{task} ended its process {tries} times ({by}{memory}): lower --workers or execution.piece_bytes, then "
            "run the same again; finished tasks are kept",
        )


def _answer(pipe: Connection) -> dict[str, Any] | None:
    """What a worker says; None where it is gone."""
    try:
        told: dict[str, Any] = from_json(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return told


def serve(pipe: Connection, folder: str) -> None:
    """A worker: performs tasks as they come through `pipe`, until that is closed."""
    end_with_parent()
    while True:
        try:
            task = Task.from_json(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            answer = {"result": vars(perform(Path(folder), task))}
        except Exception as error:
            answer = {"fault": fault_of(error)}
        pipe.send_bytes(json.dumps(answer).encode())

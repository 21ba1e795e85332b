"""Tasks on a Ray cluster: each is a Ray task that reads and writes files, so that nothing passes through Ray's memory.

All machines must see the output folder and the input under the same paths, and have twintrain installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json, shown
from coretrain.corpus.engine.task import Result, Task, fault_of, perform, raised

LOCAL = "ray://local"
"""A cluster on this machine, which ends with the command."""
AHEAD = 1000
"""Tasks that wait at the cluster at most."""


class OnRay:
    """A connection to a cluster. Raises `UserError` where Ray isn't installed, or nobody answers."""

    def __init__(self, folder: Path, address: str, workers: int) -> None:
        self.folder, self.address, self.workers = folder.resolve(), address, workers
        self._ray: Any = None

    def __enter__(self) -> OnRay:
        try:
            import ray
        except ImportError:
            raise UserError(
                "corpus/ray-missing", "--engine ray:// needs the package ray: pip install 'twintrain[ray]'"
            ) from None
        where: dict[str, Any] = {"address": self.address}
        if self.address == LOCAL:
            where = {"num_cpus": max(1, self.workers), "include_dashboard": False}
        try:
            ray.init(log_to_driver=False, logging_level="error", **where)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                "corpus/ray-not-there",
                f"no Ray cluster answers at {shown(self.address)} ({reason}): start one with ray start --head",
            ) from None
        self._ray = ray
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ray is not None:
            self._ray.shutdown()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, as they finish. A task whose process was killed is tried once more by Ray."""
        ray, source = self._ray, iter(tasks)
        remote = ray.remote(num_cpus=1, max_retries=1)(answer_of)
        waiting: dict[Any, Task] = {}
        while True:
            for task in islice(source, AHEAD - len(waiting)):
                waiting[remote.remote(str(self.folder), task.to_json())] = task
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for one in ready:
                task = waiting.pop(one)
                try:
                    answer = from_json(ray.get(one))
                except ray.exceptions.RayError as error:
                    reason = next(iter(str(error).splitlines()), type(error).__name__)
                    raise UserError(
                        "corpus/ray-task-died",
                        f"{task} ended its process on the cluster ({reason}): lower execution.piece_bytes or give its "
                        "machines more memory, then run the same again; finished tasks are kept",
                    ) from None
                if "fault" in answer:
                    raise raised(answer["fault"], task)
                yield task, Result(**answer["result"])


def answer_of(folder: str, text: str) -> str:
    """What a task on the cluster tells: JSON."""
    try:
        return json.dumps({"result": vars(perform(Path(folder), Task.from_json(text)))})
    except Exception as error:
        return json.dumps({"fault": fault_of(error)})

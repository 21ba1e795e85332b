"""Processes of one axis played by threads of one: what each computes of its part, without a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

PATIENCE = 60.0
"""Seconds after which a thread gives up on the others: one of them left out a sum."""


@dataclass
class Meeting:
    """Where the threads of an axis lay down their parts."""

    size: int
    barrier: threading.Barrier = field(init=False)
    parts: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.size, timeout=PATIENCE)
        self.parts = [None] * self.size


@dataclass(frozen=True)
class ThreadAxis:
    """Stands for `torchtrain.parallel.axes.Axis`."""

    size: int
    index: int
    meeting: Meeting

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the axis, in place."""
        return self._together(x, torch.add)

    def largest(self, x: Tensor) -> Tensor:
        """The largest over the axis, in place."""
        return self._together(x, torch.maximum)

    def _together(self, x: Tensor, of_two: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        self.meeting.parts[self.index] = x
        self.meeting.barrier.wait()
        whole = reduce(of_two, self.meeting.parts)
        self.meeting.barrier.wait()  # all have read
        return x.copy_(whole)


def on_threads(size: int, each: Callable[[ThreadAxis], Any]) -> list[Any]:
    """What `each` gives for the parts of an axis of `size`, all at once, in their order."""
    meeting = Meeting(size)

    def one(index: int) -> Any:
        try:
            return each(ThreadAxis(size, index, meeting))
        except BaseException:
            meeting.barrier.abort()  # or the others would wait for it
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))

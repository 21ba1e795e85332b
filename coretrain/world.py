"""The processes of a run, and what they must agree on. A stack's `parallel.join` gives a `World` that talks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from coretrain.background import in_background
from coretrain.errors import UserError

Result = TypeVar("Result")
PATIENCE = 10.0
"""Seconds after which the processes hear of each other while the first one works."""


class World:
    """The processes that take part in a run; this one is alone. Every method is called by all of them, in step."""

    rank = 0
    size = 1

    def gather(self, text: str) -> list[str]:
        """Each process's text, by rank, on all of them."""
        return [text]

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and commits."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any process."""
        return "1" in self.gather("1" if flag else "")

    def all(self, flag: bool) -> bool:
        """Whether `flag` holds on every process."""
        return not self.any(not flag)

    def told(self, text: str) -> str:
        """The first process's text, on all of them."""
        return self.gather(text)[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.gather("")

    def together(self, do: Callable[[], Result]) -> Result:
        """What `do` gives, run on every process; where it fails on one, it fails on all.

        The process at fault raises its own error; the others raise `PeerError` with its rank and its words.
        """
        if self.size == 1:
            return do()
        try:
            result = do()
        except Exception as error:
            self.gather(f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error))
            raise
        faults = [f"rank {rank}: {fault}" for rank, fault in enumerate(self.gather("")) if fault]
        if faults:
            raise PeerError(faults[0])
        return result

    def by_first(self, do: Callable[[], None]) -> None:
        """Have the first process do something, the others wait for it; a fault of it is raised on all.

        It may take longer than any timeout between the processes: they hear from each other meanwhile.
        """
        if self.size == 1:
            return do()
        work = in_background(do) if self.first else None
        while not self.any(work is not None and _ended(work, PATIENCE)):
            pass
        return self.together(work.result if work else lambda: None)

    def same(self, text: str, what: str) -> None:
        """Raise `UserError` on every process unless all hold the same `text`."""
        digests = self.gather(hashlib.sha256(text.encode()).hexdigest())
        if odd := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise UserError(f"rank {odd[0]} has another {what} than rank 0: start every process with the same one")


def _ended(work: Future[None], seconds: float) -> bool:
    return bool(wait([work], seconds).done)


class PeerError(UserError):
    """Another process of the run failed; the text says which and why."""

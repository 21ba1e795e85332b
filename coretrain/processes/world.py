"""The processes of a run, and what they must agree on. A stack's `parallel.join` gives a `World` that talks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from coretrain.base.errors import UserError
from coretrain.base.threads import in_background

Result = TypeVar("Result")
PATIENCE = 2.0
"""Seconds after which the processes hear of each other while one works; less than `parallel.timeout` may be."""


class World:
    """The processes that take part in a run; this one is alone. Every method is called by all of them, in step."""

    rank = 0
    size = 1

    def gather(self, text: str) -> list[str]:
        """Each process's text, by rank, on all of them."""
        return [text]

    def shutdown(self) -> None:
        """Part from the others, where all are done."""

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

    def broadcast(self, text: str) -> str:
        """The first process's text, on all of them."""
        return self.gather(text)[0]

    def broadcast_bool(self, flag: bool) -> bool:
        """The first process's answer, on all of them."""
        return bool(self.broadcast("1" if flag else ""))

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.gather("")

    def collectively(self, do: Callable[[], Result]) -> Result:
        """What `do` gives, run on every process; where it fails on one, it fails on all.

        The process at fault raises its own error; the others raise `PeerError` with its rank and its words.
        """
        return do() if self.size == 1 else self._run(do, lambda result: "")[0]

    def gather_results(self, do: Callable[[], str]) -> list[str]:
        """What `do` gives on each process, by rank, on all of them; a fault as in `collectively`."""
        return self._run(do, str)[1]

    def ended(self, work: Future[Any], wait: bool = True) -> bool:
        """Whether the `work` of every process has ended; with `wait`, once it has.

        As soon as it fails on one it fails on all, as in `collectively`: also where the others' still goes on, for it
        may be waiting for the one that failed.
        """

        def told() -> str:
            if not _ended(work, PATIENCE if wait else 0):
                return ""
            work.result()
            return "ended"

        while True:
            ended = all(self.gather_results(told))
            if ended or not wait:
                return ended

    def _run(self, do: Callable[[], Result], words: Callable[[Result], str]) -> tuple[Result, list[str]]:
        """What `do` gives, and what `words` makes of it on each process; an error of any is raised on all."""
        try:
            result = do()
        except Exception as error:
            with contextlib.suppress(UserError):  # where the others are gone, it is still the first thing to say
                self.gather(f"!{error}" if isinstance(error, UserError) else f"!{type(error).__name__}: {error}")
            raise
        told = self.gather(f".{words(result)}")
        if faults := [f"rank {rank}: {text[1:]}" for rank, text in enumerate(told) if text.startswith("!")]:
            raise PeerError("processes/other-process-failed", faults[0])
        return result, [text[1:] for text in told]

    def on_rank0(self, do: Callable[[], None]) -> None:
        """Have the first process do something, the others wait for it; a fault of it is raised on all.

        It may take longer than any timeout between the processes: they hear from each other meanwhile.
        """
        if self.size == 1:
            do()
        else:
            self.ended(in_background(do if self.first else lambda: None))

    def assert_same(self, text: str, what: str) -> None:
        """Raise `UserError` on every process unless all hold the same `text`."""
        digests = self.gather(hashlib.sha256(text.encode()).hexdigest())
        if odd := [rank for rank, digest in enumerate(digests) if digest != digests[0]]:
            raise UserError(
                "processes/ranks-differ",
                f"rank {odd[0]} has another {what} than rank 0: start every process with the same one",
            )


def _ended(work: Future[None], seconds: float) -> bool:
    return bool(wait([work], seconds).done)


class PeerError(UserError):
    """Another process of the run failed; the text says which and why."""

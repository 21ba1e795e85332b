"""Text as it comes, up to the first of some stop strings, no part of which is handed on."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """`push` gives what is sure to be text of the answer, and holds back what a stop string may begin with."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.stopped = list(stops), "", False

    def push(self, text: str) -> str:
        """Text to hand on. After a stop string, `stopped` is set and nothing more comes."""
        if self.stopped:
            return ""
        self.held += text
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            given, self.held, self.stopped = self.held[: min(found)], "", True
            return given
        keep = max((self._overlap(stop) for stop in self.stops), default=0)
        given, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return given

    def finish(self) -> str:
        """What was held back, where no stop string came of it."""
        given, self.held = self.held, ""
        return given

    def _overlap(self, stop: str) -> int:
        """Characters at the end that a stop string begins with."""
        most = min(len(stop) - 1, len(self.held))
        return next((count for count in range(most, 0, -1) if self.held.endswith(stop[:count])), 0)

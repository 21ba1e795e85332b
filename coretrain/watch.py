"""Which process keeps the others waiting: each tells in a small file where it is, and the first two look.

A process that hangs inside a collective can't be asked, and the others hang with it. So a thread in each writes
`ranks/rank-00003.json` in the run's folder every few seconds. One that has stopped writing is dead or stopped; one that
writes, but stays at an earlier place than the others, is stuck there. Either ends the run, with its name.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from coretrain.world import World

WATCHERS = 2
"""Ranks that look at the others: where the first itself hangs, the second says so."""


@dataclass(frozen=True)
class Beat:
    """Where one process is."""

    rank: int
    host: str
    process: int
    step: int
    """Counts the places that it has come to."""
    place: str
    """In words: `the gradients of update 17`."""


def fault_of(beats: dict[int, Beat], silent: dict[int, float], behind: dict[int, float], timeout: float) -> str | None:
    """The sentence about a process that has been silent, or behind the furthest one, for `timeout` seconds.

    `silent` and `behind` are seconds by rank.
    """
    if late := [rank for rank, seconds in silent.items() if seconds > timeout]:
        rank = min(late)
        at = f" since it was at {beats[rank].place}" if rank in beats else ""
        return f"{_name(rank, beats)} has not been heard from for {silent[rank]:.0f} s{at}"
    if late := [rank for rank, seconds in behind.items() if seconds > timeout]:
        rank, furthest = min(late, key=lambda rank: beats[rank].step), max(beats.values(), key=lambda beat: beat.step)
        return (
            f"{_name(rank, beats)} has been at {beats[rank].place} for {behind[rank]:.0f} s, "
            f"while others wait for it at {furthest.place}"
        )
    return None


def _name(rank: int, beats: dict[int, Beat]) -> str:
    return f"rank {rank}" + (f" (process {beats[rank].process} on {beats[rank].host})" if rank in beats else "")


class Watch:
    """The thread of one process; of a lone process, nothing."""

    def __init__(self, folder: Path, world: World, timeout: float, hint: str) -> None:
        """`hint` is the line that goes on with the run, said when it ends."""
        self.folder, self.world, self.timeout, self.hint = folder / "ranks", world, timeout, hint
        self.beat = Beat(world.rank, socket.gethostname(), os.getpid(), 0, "its start")
        self.interval = max(0.2, min(5.0, timeout / 20))
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self.world.size > 1:
            self.world.by_first(self._clear)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()

    def at(self, place: str) -> None:
        """Say where this process is: what it is about to do."""
        self.beat = Beat(self.beat.rank, self.beat.host, self.beat.process, self.beat.step + 1, place)

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def _run(self) -> None:
        started = time.monotonic()
        heard: dict[int, tuple[str, float]] = {}
        level: dict[int, tuple[int, float]] = {}
        while not self._end.wait(self.interval):
            self._write()
            fault = self._read("fault")
            if fault is None and self.world.rank < WATCHERS:
                fault = self._look(started, heard, level)
                if fault and not self._end.is_set():
                    print(f"error: {fault}; the run ends. Go on with: {self.hint}", file=sys.stderr, flush=True)
                    (self.folder / "fault").write_text(fault)
            if fault and not self._end.is_set():
                time.sleep(2 * self.interval)  # for the others to read it too
                os._exit(1)  # the main thread is inside a collective and can't be called back

    def _look(
        self, started: float, heard: dict[int, tuple[str, float]], level: dict[int, tuple[int, float]]
    ) -> str | None:
        now, silent = time.monotonic(), {}
        beats: dict[int, Beat] = {}
        for rank in range(self.world.size):
            text = self._read(f"rank-{rank:05d}.json") or ""
            if text and heard.get(rank, ("", 0.0))[0] != text:
                heard[rank] = text, now
            silent[rank] = now - heard.get(rank, ("", started))[1]
            if rank in heard:
                beats[rank] = Beat(**{k: v for k, v in json.loads(heard[rank][0]).items() if k != "count"})
        furthest = max(beat.step for beat in beats.values()) if beats else 0
        behind = {}
        for rank, beat in beats.items():
            if beat.step == furthest or rank not in level or level[rank][0] != beat.step:
                level[rank] = beat.step, now
            behind[rank] = now - level[rank][1]
        return fault_of(beats, silent, behind, self.timeout)

    def _write(self) -> None:
        path = self.folder / f"rank-{self.world.rank:05d}.json"
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(self.beat) | {"count": time.monotonic()}))
            part.replace(path)
        except OSError:
            pass  # a full disk or a folder that is gone is for the main thread to say

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text()
        except OSError:
            return None

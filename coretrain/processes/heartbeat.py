"""Which process keeps the others waiting: each tells in a small file where it is, and the first two look.

A process that hangs inside a collective can't be asked, and the others hang with it. So a thread in each writes
`ranks/rank-00003.json` in the run's folder every few seconds. One that has stopped writing is dead or stopped; one that
writes, but stays at an earlier place than the others, is stuck there; where all stay at one place for much longer than
it takes, a device or the network between them hangs. Each ends the run, and is said.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from coretrain.base.errors import exit_now
from coretrain.processes.world import World

SAID = 3
"""Exit code of processes that the watch has ended: why is said, and need not be again."""
WATCHERS = 2
"""Ranks that look at the others: where the first itself hangs, the second says so."""
KNOWN_AFTER = 5
"""Times that a kind of place was left after which it is known how long it takes; before, something may be compiled."""
LONGER = 20
"""Times its usual duration that all may be at a place. A save is none of these: its end is the disk's matter."""


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


def fault_of(
    beats: dict[int, Beat], silent: dict[int, float], behind: dict[int, float], silence: float, timeout: float
) -> str | None:
    """The sentence about a process that was silent for `silence` seconds, or behind the furthest one for `timeout`.

    `silent` and `behind` are seconds by rank.
    """
    if late := [rank for rank, seconds in silent.items() if seconds > silence]:
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


def kind(place: str) -> str:
    """A place without the number of its update: what comes again and again."""
    return place.rstrip("0123456789")


class Watch:
    """The thread of one process; of a lone process, nothing."""

    def __init__(self, folder: Path, world: World, silence: float, timeout: float, hint: str) -> None:
        """`hint` is the line that goes on with the run, said when it ends."""
        self.folder, self.world, self.silence, self.timeout, self.hint = folder / "ranks", world, silence, timeout, hint
        self.beat = Beat(world.rank, socket.gethostname(), os.getpid(), 0, "its start")
        self.interval = max(0.2, min(5.0, silence / 10))
        self.usual: dict[str, float] = {}
        """The median of the seconds spent at a kind of place, of those that are known."""
        self._spent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=31))
        self._came = time.monotonic()
        self._heard: dict[int, tuple[str, float]] = {}
        self._level: dict[int, tuple[int, float]] = {}
        self._together: tuple[set[int], float] = set(), 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self.world.size > 1:
            self.world.on_rank0(self._clear)
            self._write()
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        if self._thread:
            self._thread.join()
            if error is not None:  # for the others, who only see that nothing more comes
                what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self.beat = replace(self.beat, place=f"{self.beat.place}, where it ended by {what}")
                self._write()

    def at(self, place: str) -> None:
        """Say where this process is: what it is about to do."""
        now, left = time.monotonic(), kind(self.beat.place)
        spent = self._spent[left]
        spent.append(now - self._came)
        if len(spent) >= KNOWN_AFTER and "save" not in left:
            self.usual[left] = statistics.median(spent)
        self._came = now
        self.beat = replace(self.beat, step=self.beat.step + 1, place=place)

    def _clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def _run(self) -> None:
        started = time.monotonic()
        while not self._end.wait(self.interval):
            fault = None
            if not self._write():  # nobody else may be able to write either, and be silent only for that
                self._heard, started = {}, time.monotonic()
            elif not (fault := self._read("fault")) and self.world.rank < WATCHERS:
                fault = self._look(started)
                if fault and not self._end.is_set():
                    self._say(fault)
            if fault and not self._end.is_set():
                # for the others to read it too, and to be gone before the first, whose end would break their talk
                time.sleep((4 if self.world.first else 2) * self.interval)
                exit_now(SAID)  # the main thread is inside a collective and can't be called back

    def _say(self, fault: str) -> None:
        """Print the sentence and leave it for the others, unless another that looks has just done so."""
        try:
            with open(self.folder / "fault", "x", encoding="utf-8") as file:
                file.write(fault)
        except FileExistsError:
            return
        except OSError:
            pass  # a full disk is no reason to be silent
        print(f"error: {fault}; the run ends. Go on with: {self.hint}", file=sys.stderr, flush=True)

    def _look(self, started: float) -> str | None:
        now, silent = time.monotonic(), {}
        beats: dict[int, Beat] = {}
        for rank in range(self.world.size):
            text = self._read(f"rank-{rank:05d}.json") or ""
            if text and self._heard.get(rank, ("", 0.0))[0] != text:
                self._heard[rank] = text, now
            silent[rank] = now - self._heard.get(rank, ("", started))[1]
            if rank in self._heard:
                beats[rank] = Beat(**{k: v for k, v in json.loads(self._heard[rank][0]).items() if k != "count"})
        furthest = max((beat.step for beat in beats.values()), default=0)
        behind = {}
        for rank, beat in beats.items():
            if beat.step == furthest or rank not in self._level or self._level[rank][0] != beat.step:
                self._level[rank] = beat.step, now
            behind[rank] = now - self._level[rank][1]
        here = {beat.step for beat in beats.values()} if len(beats) == self.world.size else set()
        if len(here) != 1 or here != self._together[0]:
            self._together = here, now
        return fault_of(beats, silent, behind, self.silence, self.timeout) or (
            self._hang(beats[self.world.rank].place, now - self._together[1]) if len(here) == 1 else None
        )

    def _hang(self, place: str, seconds: float) -> str | None:
        """The sentence about a place where all have been for `seconds`, if it takes less."""
        usual = self.usual.get(kind(place))
        if usual is None or seconds <= max(self.timeout, LONGER * usual):
            return None
        return (
            f"all {self.world.size} ranks have been at {place} for {seconds:.0f} s, which takes {usual:.2g} s as a "
            "rule: a device or the network between them hangs"
        )

    def _write(self) -> bool:
        path = self.folder / f"rank-{self.world.rank:05d}.json"
        part = path.with_suffix(".part")
        try:
            part.write_text(json.dumps(asdict(self.beat) | {"count": time.monotonic()}), encoding="utf-8")
            part.replace(path)
        except OSError:
            return False  # a full disk or a folder that is gone is for the main thread to say
        return True

    def _read(self, name: str) -> str | None:
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

"""The watch over the processes of a run: who is silent, who is behind, and what they must agree on."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import coretrain.processes.heartbeat as watch_module
from coretrain.processes.heartbeat import (
    SAID,
    Beat,
    Watch,
    fault_of,
)
from coretrain.processes.world import PeerError, World

WAITING = Beat(0, "first", 10, 8, "the gradients of update 17")
STUCK = Beat(1, "second", 11, 7, "the batch of update 17")


def test_a_silent_process_is_named():
    fault = fault_of({0: WAITING, 1: STUCK}, {0: 1.0, 1: 61.0}, {0: 0.0, 1: 61.0}, 60, 300)
    assert (
        fault == "rank 1 (process 11 on second) has not been heard from for 61 s since it was at the batch of update 17"
    )
    assert "rank 1 has not been heard from" in (fault_of({0: WAITING}, {0: 1.0, 1: 61.0}, {0: 0.0}, 60, 300) or "")


def test_a_process_that_is_behind_is_named():
    assert fault_of({0: WAITING, 1: STUCK}, {0: 1.0, 1: 1.0}, {0: 0.0, 1: 61.0}, 40, 300) is None
    fault = fault_of({0: WAITING, 1: STUCK}, {0: 1.0, 1: 1.0}, {0: 0.0, 1: 61.0}, 40, 60)
    assert fault is not None
    assert fault.startswith("rank 1 (process 11 on second) has been at the batch of update 17 for 61 s")
    assert fault.endswith("wait for it at the gradients of update 17")


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(watch_module.time, "monotonic", lambda: self.now)


class Watched:
    """The watches of two processes, each with the other's file."""

    def __init__(self, folder: Path, timeout: float = 60) -> None:
        self.both = [Watch(folder, Two(rank), 40, timeout, "") for rank in range(2)]
        self.both[0].folder.mkdir()

    def at(self, place: str, ranks=(0, 1)) -> None:
        for rank in ranks:
            self.both[rank].at(place)

    def look(self, alive=(0, 1)) -> str:
        for rank in alive:
            self.both[rank]._write()
        return self.both[0]._look(0) or ""


def test_behind_counts_from_the_last_step(tmp_path, monkeypatch):
    """A process that is one step late but gets on is not behind; one that stays is, from when it came there."""
    clock, two = Clock(monkeypatch), Watched(tmp_path)
    for update in range(3):
        two.at(f"the gradients of update {update}", [0])
        assert not two.look()
        clock.now += 50
        two.at(f"the gradients of update {update}", [1])
        assert not two.look()
    two.at("the gradients of update 3", [0])
    assert not two.look()
    clock.now += 61
    assert two.look().startswith("rank 1 ")


def test_silence_is_short_and_slowness_is_not(tmp_path, monkeypatch):
    """Also of a process that is where all others are."""
    clock, two = Clock(monkeypatch), Watched(tmp_path, 300)
    two.at("the gradients of update 0")
    assert not two.look()
    for _ in range(2):
        clock.now += 30
        last = two.look([0])
    assert "rank 1 " in last
    assert "not been heard from for 60 s" in last


def test_a_hang_of_all_is_told_from_what_takes_long(tmp_path, monkeypatch):
    clock, two = Clock(monkeypatch), Watched(tmp_path, 60)
    for update in range(6):
        two.at(f"the gradients of update {update}")
        two.look()
        clock.now += 1000 if update == 0 else 5  # the first compiles
        assert not two.look(), "nobody knows yet what it takes, or it takes as long"
        two.at(f"the save after update {update}")
    clock.now += 10_000
    assert not two.look(), "a disk may be as slow as it likes"
    two.at("the gradients of update 6")
    assert not two.look()
    clock.now += 99
    assert not two.look(), "20 times 5 s are more than the timeout"
    clock.now += 2
    assert "all 2 ranks have been at the gradients of update 6 for 101 s, which takes 5 s" in two.look()


def test_a_full_disk_is_not_silence(tmp_path, monkeypatch):
    """Nobody can write then: the main thread is to say why, and the first look afterwards names nobody."""
    said = []
    watch = Watch(tmp_path, Two(0, ".done"), 0.2, 60, "")
    watch.interval = 0.02
    monkeypatch.setattr(watch_module, "exit_now", said.append)
    monkeypatch.setattr(watch, "_write", lambda: False)
    with watch:
        time.sleep(0.5)
        assert not said
        watch._write = lambda: True
        time.sleep(0.1)
        assert not said
        time.sleep(0.5)
    assert said


@pytest.mark.parametrize(("disk", "times"), [("in order", 1), ("gone", 2)])
def test_what_two_find_at_once_is_said_once(disk, times, tmp_path, monkeypatch, capsys):
    """Twice only where neither can tell the other."""
    monkeypatch.setattr(watch_module, "exit_now", sys.exit)
    both, found = [Watch(tmp_path, Two(rank), 40, 60, "a line") for rank in range(2)], threading.Barrier(2)
    if disk == "in order":
        both[0].folder.mkdir()
    for watch in both:
        watch.interval = 0.01
        monkeypatch.setattr(watch, "_write", lambda: True)
        monkeypatch.setattr(watch, "_look", lambda _: (found.wait(20), "rank 1 is gone")[1])
    with ThreadPoolExecutor() as pool:
        ends = [future.exception() for future in [pool.submit(watch._run) for watch in both]]
    assert [end.code for end in ends] == [SAID] * 2
    assert capsys.readouterr().err == "error: rank 1 is gone; the run ends. Go on with: a line\n" * times


def test_who_ends_by_an_error_leaves_it(tmp_path):
    (tmp_path / "ranks").mkdir()

    def train(watch):
        with watch:
            watch.at("the end of update 3")
            raise OSError(5, "Input/output error")

    watch = Watch(tmp_path, Two(1, ".done"), 60, 60, "")
    with pytest.raises(OSError, match="Input"):
        train(watch)
    assert "the end of update 3, where it ended by OSError: [Errno 5] Input" in (watch._read("rank-00001.json") or "")


class Two(World):
    """One of two processes, whose peer says what it's told."""

    size = 2

    def __init__(self, rank: int = 0, peer: str = "") -> None:
        self.rank, self.peer = rank, peer

    def gather(self, text: str) -> list[str]:
        return [text, self.peer] if self.rank == 0 else [self.peer, text]


def test_what_fails_for_one_fails_for_all():
    with pytest.raises(PeerError, match="rank 1: no room"):
        Two(0, "!no room").collectively(lambda: 1)
    with pytest.raises(ZeroDivisionError):
        Two(0).collectively(lambda: 1 // 0)
    assert Two(0, ".").collectively(lambda: 1) == 1


def test_what_all_must_have_alike():
    from coretrain.base.errors import UserError

    with pytest.raises(UserError, match="rank 1 has another config than rank 0"):
        Two(0, "other").assert_same("mine", "config")


def test_a_lone_process_writes_nothing(tmp_path: Path):
    with Watch(tmp_path, World(), 1, 1, "") as watch:
        watch.at("the gradients of update 0")
    assert not list(tmp_path.iterdir())

"""The watch over the processes of a run: who is silent, who is behind, and what they must agree on."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from coretrain.watch import Beat, Watch, fault_of
from coretrain.world import PeerError, World

WAITING = Beat(0, "first", 10, 8, "the gradients of update 17")
STUCK = Beat(1, "second", 11, 7, "the batch of update 17")


def test_a_silent_process_is_named():
    fault = fault_of({0: WAITING, 1: STUCK}, {0: 1.0, 1: 61.0}, {0: 0.0, 1: 61.0}, 60)
    assert (
        fault == "rank 1 (process 11 on second) has not been heard from for 61 s since it was at the batch of update 17"
    )
    assert "rank 1 has not been heard from" in (fault_of({0: WAITING}, {0: 1.0, 1: 61.0}, {0: 0.0}, 60) or "")


def test_a_process_that_is_behind_is_named():
    fault = fault_of({0: WAITING, 1: STUCK}, {0: 1.0, 1: 1.0}, {0: 0.0, 1: 61.0}, 60)
    assert fault is not None
    assert fault.startswith("rank 1 (process 11 on second) has been at the batch of update 17 for 61 s")
    assert fault.endswith("wait for it at the gradients of update 17")


def test_all_at_one_place_is_no_fault():
    """A long compilation keeps all of them at the same place."""
    assert fault_of({0: WAITING, 1: replace(WAITING, rank=1)}, {0: 1.0, 1: 1.0}, {0: 900.0, 1: 900.0}, 1000) is None


def test_behind_counts_from_the_last_step(tmp_path):
    """A process that is one step late but gets on is not behind; one that stays is, from when it came there."""
    watch = Watch(tmp_path, Two(), 60, "")
    watch.folder.mkdir()
    level, heard = {}, {}
    for step in range(3):
        for rank in range(2):
            peer = Watch(tmp_path, Two(rank), 60, "")
            peer.beat = replace(WAITING, rank=rank, step=5 + step - rank)
            peer._write()
        assert watch._look(time.monotonic(), heard, level) is None
    level[1] = level[1][0], level[1][1] - 100
    assert "rank 1" in (watch._look(time.monotonic(), heard, level) or "")


class Two(World):
    """One of two processes, whose peer says what it's told."""

    size = 2

    def __init__(self, rank: int = 0, peer: str = "") -> None:
        self.rank, self.peer = rank, peer

    def gather(self, text: str) -> list[str]:
        return [text, self.peer] if self.rank == 0 else [self.peer, text]


def test_what_fails_for_one_fails_for_all():
    with pytest.raises(PeerError, match="rank 1: no room"):
        Two(0, "no room").together(lambda: 1)
    with pytest.raises(ZeroDivisionError):
        Two(0).together(lambda: 1 // 0)
    assert Two(0).together(lambda: 1) == 1


def test_what_all_must_have_alike():
    from coretrain.errors import UserError

    with pytest.raises(UserError, match="rank 1 has another config than rank 0"):
        Two(0, "other").same("mine", "config")


def test_a_lone_process_writes_nothing(tmp_path: Path):
    with Watch(tmp_path, World(), 1, "") as watch:
        watch.at("the gradients of update 0")
    assert not list(tmp_path.iterdir())

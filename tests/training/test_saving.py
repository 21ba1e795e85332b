"""A checkpoint that several processes write, hash and seal together; here they are threads."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from coretrain.base.errors import UserError
from coretrain.base.threads import in_background
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import save_interchange
from coretrain.checkpoint.manifest import (
    DamagedCheckpoint,
    Progress,
    digests,
    verify,
)
from coretrain.config.load import load_config
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters
from coretrain.journal.journal import SilentJournal
from coretrain.processes import world as worlds
from coretrain.processes.heartbeat import Watch
from coretrain.processes.world import PeerError, World
from coretrain.training.loop import Loop, Preemption
from coretrain.training.restore import restore
from coretrain.training.runner import open_journal
from coretrain.training.saver import Saver

CONFIG = RunConfig(model=ModelConfig(layers=1, width=32, heads=2, vocab=300, context=16))
SIZES = (5_000, 40, 300, 300, 0, 9_000, 700)


class Threads(World):
    """One of several threads in the place of processes."""

    def __init__(self, rank: int, meeting: threading.Barrier, words: list[str]) -> None:
        self.rank, self.size, self.meeting, self.words = rank, len(words), meeting, words

    def gather(self, text: str) -> list[str]:
        self.words[self.rank] = text
        self.meeting.wait(20)
        told = list(self.words)
        self.meeting.wait(20)
        return told


def all_of(count: int, do) -> list:
    """`do(world)` in each of `count` threads; what it gave, or raised."""
    meeting, words = threading.Barrier(count), [""] * count

    def run(rank: int):
        try:
            return do(Threads(rank, meeting, words))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Part:
    """A stack that writes one file for each rank, slowly; rank `full` finds no room, and the others wait for it."""

    name, writes_in_place = "torch", True

    def __init__(self, rank: int, full: int | None = None) -> None:
        self.rank, self.full = rank, full
        self.waiting: Future[None] = Future()

    def save(self, folder: Path) -> Future[None]:
        return self.waiting if self.full not in (None, self.rank) else in_background(lambda: self.write(folder))

    def write(self, folder: Path) -> None:
        time.sleep(0.01 * self.rank)
        if self.rank == self.full:
            raise OSError(28, "No space left on device")
        (folder / f"{self.rank}").write_bytes(bytes(1000 * (self.rank + 1)))


def saver(folder: Path, world: World, full: int | None = None, at=lambda place: None) -> Saver:
    checkpoints = CheckpointFolder(folder)
    return Saver(RunConfig(), Part(world.rank, full), checkpoints, SilentJournal(), world, at)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_file_is_hashed_by_one_process(tmp_path, count):
    (tmp_path / "in").mkdir()
    for number, size in enumerate(SIZES):
        (tmp_path / "in" / str(number)).write_bytes(bytes(size))
    parts = [digests(tmp_path, index, count) for index in range(count)]
    assert {name: facts for part in parts for name, facts in part.items()} == digests(tmp_path)
    assert sum(map(len, parts)) == len(SIZES)
    if count == 2:  # 9,000 against all others: 6,340
        assert sorted(sum(facts["bytes"] for facts in part.values()) for part in parts) == [6_340, 9_000]


def test_all_write_and_the_first_seals(tmp_path):
    def save(world):
        mine = saver(tmp_path, world)
        mine.start(Progress(update=3))
        assert not CheckpointFolder(tmp_path).complete()
        mine.finish()
        mine.start(Progress(update=4))
        while not CheckpointFolder(tmp_path).final(4).exists():
            mine.finish(wait=False)
            world.barrier()

    assert all_of(3, save) == [None] * 3
    for path in CheckpointFolder(tmp_path).complete():
        assert sorted(file.name for file in path.iterdir()) == ["0", "1", "2", "manifest.json"]
        assert verify(path).progress.update in (3, 4)


@pytest.mark.parametrize("step", ["finish", "look", "make way"])
def test_a_full_disk_of_one_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, step):
    """The others hear of it though their own part isn't written: it may never be, without the one that failed."""
    monkeypatch.setattr(worlds, "PATIENCE", 0.05)

    def save(world):
        first, second = saver(tmp_path, world), saver(tmp_path, world, full=1)
        first.start(Progress(update=3))
        first.finish()
        second.start(Progress(update=4))
        for _ in range(1000):
            second.make_way() if step == "make way" else second.finish(wait=step == "finish")

    errors = all_of(2, save)
    assert [type(error) for error in errors] == [PeerError, OSError]
    assert "rank 1: OSError: [Errno 28] No space left" in str(errors[0])
    assert [path.name for path in CheckpointFolder(tmp_path).complete()] == ["update-00000003"]
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_update_that_waits_for_a_save_is_at_the_save(tmp_path):
    """Told before it waits: of a save's places alone the watch knows no usual duration, for a disk may be slow."""
    watch, waited = Watch(tmp_path, World(), 40, 300, ""), []

    class Waits(World):
        def ended(self, work: Future, wait: bool = True) -> bool:
            waited.append(watch.beat.place)
            return super().ended(work, wait)

    mine = saver(tmp_path, Waits(), at=watch.at)
    for update in range(6):
        mine.start(Progress(update=update))
        watch.at(f"the gradients of update {update}")
        mine.make_way()
        watch.at(f"the end of update {update}")
    assert waited[0] == "the end of the save after update 0"
    assert all("save" in place for place in waited)
    assert watch.usual.keys() == {"the gradients of update ", "the end of update "}


def test_a_journal_that_finds_no_room_ends_all():
    """Only the first writes it; where the disk is shared it is the first to find it full."""

    class Full(SilentJournal):
        def update(self, **_):
            raise OSError(28, "No space left on device")

    def report(world):
        loop = SimpleNamespace(world=world, journal=Full() if world.first else SilentJournal())
        return Loop.report(loop, {}, Preemption())

    assert [type(error) for error in all_of(2, report)] == [OSError, PeerError]


def test_a_journal_that_cannot_go_on_is_said_to_all(tmp_path):
    """Only the first reads it; the others would wait for it in their first update."""
    (tmp_path / "metrics.jsonl").write_text('{"update": 0, "loss"\n{"update": 1, "loss": 5.0}\n')
    errors = all_of(2, lambda world: open_journal(tmp_path, CONFIG, "torch", 1, "cpu", world))
    assert [type(error) for error in errors] == [UserError, PeerError]
    assert "rank 0: " in str(errors[1])
    assert "line 1, is damaged" in str(errors[1])


def test_the_first_error_is_the_one_that_is_said():
    """Where the others are gone too, so that it can't be told to them."""

    def alone(text):
        raise PeerError("processes/gone", "another process of the run is gone")

    world = Threads(0, threading.Barrier(2), ["", ""])
    world.gather = alone
    with pytest.raises(OSError, match="No space left"):
        world.collectively(lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))


def load(folder: Path, said: list[str], world: World) -> tuple[Path, str]:
    return CheckpointFolder(folder).first_that_loads(lambda path, progress: path.name, said.append, world)


def test_damage_in_anyones_part_is_found_by_all(tmp_path):
    def save(world):
        mine = saver(tmp_path, world)
        for update in (3, 4):
            mine.start(Progress(update=update))
            mine.finish()

    all_of(2, save)
    newest = CheckpointFolder(tmp_path).final(4)
    for damaged in ("0", "1"):
        kept = (newest / damaged).read_bytes()
        (newest / damaged).write_bytes(b"x" + kept[1:])
        with pytest.raises(DamagedCheckpoint, match=f"{damaged} is damaged"):
            verify(newest)
        said: list[str] = []
        loads = all_of(2, functools.partial(load, tmp_path, said))
        assert [name for _, name in loads] == ["update-00000003"] * 2
        assert any(f"{damaged} is damaged" in text for text in said)
        (newest / damaged).write_bytes(kept)


def test_what_the_first_sees_is_what_all_load(tmp_path):
    """And who doesn't see it ends the run: a state from elsewhere would train on unnoticed."""
    start = initial_parameters(CONFIG.model, 1)
    for name, update in (("a", 3), ("b", 4)):
        save_interchange(
            tmp_path / name / "interchange" / f"update-{update:08d}",
            CONFIG,
            {"parameters": start},
            Progress(update=update),
            "torch",
        )
    stack = SimpleNamespace(name="torch", adopt=lambda groups, applied: None)

    def resume(*folders: str):
        return all_of(2, lambda world: restore(stack, tmp_path / folders[world.rank], print, world=world))

    assert [progress.update for progress in resume("a", "a")] == [3, 3]
    assert [progress.update for progress in resume("a", "b")] == [3, 3]
    (tmp_path / "empty").mkdir()
    assert [progress.update for progress in resume("a", "empty")] == [3, 3]
    errors = resume("empty", "a")
    assert all(isinstance(error, UserError) and "has no interchange checkpoint" in str(error) for error in errors)


def test_the_others_hear_of_the_first_while_it_works(monkeypatch):
    """What the first does may take longer than any timeout between the processes."""
    monkeypatch.setattr(worlds, "PATIENCE", 0.05)
    done = []

    def slow():
        time.sleep(0.3)
        done.append("first")

    def work(world):
        meetings = []
        gather = world.gather
        world.gather = lambda text: meetings.append(text) or gather(text)
        world.on_rank0(slow)
        return len(meetings)

    counts = all_of(2, work)
    assert done == ["first"]
    assert counts[0] == counts[1] >= 4

    def fail(world):
        world.on_rank0(lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    assert [type(error) for error in all_of(2, fail)] == [OSError, PeerError]


def test_they_hear_of_it_within_any_timeout():
    """Else JAX's key-value store says that the first keeps them waiting, though it works."""
    with pytest.raises(UserError, match=r"parallel\.timeout"):
        load_config(None, [("parallel.timeout", f"{2 * worlds.PATIENCE:.0f}")])

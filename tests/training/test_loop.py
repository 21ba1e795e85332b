"""The loop's policies end to end, with a stack of one number that needs no framework."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import coretrain.training.loop
import coretrain.training.text
from coretrain.base.threads import in_background
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.contract.update import Figures, Limits, Standing, judged
from coretrain.data.batch import IGNORED, windows
from coretrain.journal.journal import Journal
from coretrain.journal.metrics import read_metrics
from coretrain.training.loop import Loop
from coretrain.training.stack import InStep
from coretrain.training.text import Text

CONTEXT = 8


class OneNumber(InStep):
    """A stack whose whole state is one number: each applied update adds its batch's index + 1."""

    name, device_name, writes_in_place = "torch", "cpu", False

    def __init__(self, bad: set[int]) -> None:
        self.value, self.bad, self.batch = 0.0, bad, -1

    def batches(self, data, start, stop):
        for index in range(start, stop):
            yield windows(np.full((2, CONTEXT + 1), index, np.int32))

    def gradients(self, batch, update, loss_scale):
        self.batch = int(batch.tokens[0, 0])
        return (math.nan, 1.0) if self.batch in self.bad else (5.0, 1.0 + update / 1000)

    def apply(self, lr, factor, applied):
        self.value += self.batch + 1

    def save(self, folder: Path):
        value = self.value
        return in_background(lambda: (folder / "state.json").write_text(json.dumps(value)))

    def load(self, folder: Path, applied):
        self.value = json.loads((folder / "state.json").read_text())


class Ahead(OneNumber):
    """The same as a device makes it that is ahead of the host: a verdict of its own, and figures that are read later.

    Data 30 is a spike.
    """

    in_step = False

    def __init__(self, bad: set[int]) -> None:
        super().__init__(bad)
        self.under_way, self.most, self.standing, self.changes = 0, 0, Standing(0, 0, False), 0

    def gradients(self, batch, update, loss_scale):
        loss, norm = super().gradients(batch, update, loss_scale)
        return (90.0 if self.batch == 30 else loss), norm

    def update(self, batch, update, orders, change):
        assert orders.alone is (self.under_way == 0)
        self.standing = orders.standing if orders.alone else self.standing
        assert orders.standing.applied <= self.standing.applied
        loss, norm = self.gradients(batch, update, orders.scale)
        fine, after = judged(self.config.health, self.standing, loss, norm, orders.limits, math.isfinite)
        change()
        if fine:
            self.apply(orders.lr, 1.0, self.standing.applied)
        self.standing, self.under_way = after, self.under_way + 1
        self.most = max(self.most, self.under_way)

        def read():
            self.under_way -= 1
            return Figures(loss, norm, bool(fine))

        return read

    def load(self, folder, applied):
        super().load(folder, applied)
        self.under_way = 0  # what was begun is dropped


class Waiting(Ahead):
    """The same, whose figures are read at once."""

    in_step = True


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setattr(coretrain.training.text, "validation_batches", lambda data, config: [])
    monkeypatch.setattr(Loop, "evaluate", lambda self: 5.0)

    def run(bad: set[int], policy: str, progress: Progress | None = None, kind: type = OneNumber, **more: object):
        fields = {
            "model.context": CONTEXT,
            "model.vocab": 300,
            "train.updates": 12,
            "train.batch_size": 2,
            "schedule.warmup_updates": 2,
            "checkpoint.interval": 4,
            "journal.tensorboard": "false",
            "health.nonfinite": policy,
            "health.lag": 0,
        } | {key.replace("__", "."): value for key, value in more.items()}
        config = load_config("tiny", [(key, str(value)) for key, value in fields.items()])
        stack = kind(bad)
        stack.config = config
        with Journal(tmp_path, config, "torch") as journal:
            loop = Loop(config, stack, SimpleNamespace(), tmp_path, journal, progress or Progress())
            status = loop.train()
        return status, stack, loop

    return run


def test_a_skipped_update_uses_up_its_data_and_changes_nothing(train, tmp_path):
    status, stack, loop = train({5}, "skip")
    assert status == "finished"
    assert stack.value == sum(range(1, 13)) - 6
    assert (loop.progress.update, loop.progress.applied, loop.progress.data_index) == (12, 11, 12)
    assert [row["update"] for row in read_metrics(tmp_path)[0]] == list(range(12))


def test_a_rollback_undoes_what_followed_the_checkpoint_and_skips_past_the_bad_data(train, tmp_path):
    status, stack, loop = train({6}, "rollback")
    assert status == "finished"
    # back to the checkpoint after 4 updates (data 0 to 3), then 8 more updates on data 7 to 14
    assert stack.value == sum(range(1, 5)) + sum(range(8, 16))
    assert (loop.progress.update, loop.progress.applied, loop.progress.data_index) == (12, 12, 15)
    updates, _, events = read_metrics(tmp_path)
    assert [row["update"] for row in updates] == list(range(12))
    assert [event["event"] for event in events].count("rollback") >= 1
    assert loop.progress.tokens == 12 * 2 * CONTEXT


def test_undone_updates_leave_the_spike_window(train):
    _, _, loop = train({6}, "rollback", health__spike="skip")
    # updates 4 and 5 were applied, undone and applied again: they count once
    assert len(loop.health.norms) == 12
    assert list(loop.health.norms) == [1.0 + update / 1000 for update in range(12)]


def test_a_rollback_that_does_not_help_stops_the_run(train):
    status, _, loop = train(set(range(6, 1000)), "rollback")
    assert status == "stopped"
    assert loop.progress.update < 12


def test_stop_saves_the_state_before_the_bad_update(train):
    status, stack, loop = train({6}, "stop")
    assert status == "stopped"
    newest = loop.checkpoints.complete()[0]
    assert newest.name == "update-00000006"
    assert json.loads((newest / "state.json").read_text()) == stack.value == sum(range(1, 7))


def test_float16_overflow_halves_the_scale_and_is_no_fault_of_health(train, monkeypatch):
    overflowing = {3, 4}

    def gradients(self, batch, update, loss_scale):
        self.batch = int(batch.tokens[0, 0])
        return 5.0, math.inf if self.batch in overflowing else 1.0

    monkeypatch.setattr(OneNumber, "gradients", gradients)
    status, _, loop = train(set(), "stop", precision__compute="float16", precision__loss_scale=1024)
    assert status == "finished"
    assert loop.scale.scale == 256
    assert (loop.progress.update, loop.progress.applied) == (12, 10)
    assert replace(loop.progress).loss_scale["scale"] == 256


def test_the_loss_scale_grows_after_2000_good_updates_and_an_overflow_begins_anew(train, monkeypatch):
    """A resume goes on with the count; each update's factor is the clip's over the scale of its own gradients."""
    scales, factors = [], []

    def gradients(self, batch, update, loss_scale):
        scales.append(loss_scale)
        return 5.0, math.inf if update == 9 else 4.0

    monkeypatch.setattr(OneNumber, "gradients", gradients)
    monkeypatch.setattr(OneNumber, "apply", lambda self, lr, factor, applied: factors.append(factor))
    begun = Progress(loss_scale={"scale": 64.0, "good": 1996})
    _, _, loop = train(set(), "stop", begun, precision__compute="float16", optimizer__clip=1.0)
    assert scales == [64.0] * 4 + [128.0] * 6 + [64.0] * 2
    clip = 1.0 / (4.0 + 1e-6)
    assert factors == [clip / scale for number, scale in enumerate(scales) if number != 9]
    assert vars(loop.scale) == {"scale": 64.0, "good": 2}


def test_a_loss_scale_never_falls_below_one(train, monkeypatch):
    """At 1 an overflow is a fault like any other."""
    monkeypatch.setattr(OneNumber, "gradients", lambda self, batch, update, loss_scale: (5.0, math.inf))
    status, _, loop = train(set(), "stop", precision__compute="float16", precision__loss_scale=4)
    assert (status, loop.scale.scale, loop.progress.update) == ("stopped", 1.0, 2)


def test_evaluation_is_the_mean_over_all_targets(monkeypatch):
    """Not the mean of the batches' means: they have unequally many targets, some with weights."""
    rows = np.zeros((2, 5), np.int32)
    few = windows(rows.copy())
    few.labels[0] = IGNORED
    weighted = replace(windows(rows[:1]), weights=np.array([[0.5, 0, 2, 1]], np.float32))
    sums = iter([30.0, 4.0, 7.0])
    loop = object.__new__(Loop)
    loop.progress, loop.at = Progress(update=3), lambda place: None
    loop.source = Text(None, SimpleNamespace(evaluate=lambda batch: next(sums)), SimpleNamespace(sets=()))
    told = []
    loop.journal = SimpleNamespace(evaluation=lambda *values: told.append(values), answers=lambda *none: None)
    made = [windows(rows), few, weighted]
    monkeypatch.setattr(coretrain.training.text, "validation_batches", lambda data, config: made)
    monkeypatch.setattr(coretrain.training.text, "validation_bytes_per_token", lambda data, config: 2.5)
    mean = 41.0 / (8 + 4 + 3.5)
    assert loop.evaluate() == pytest.approx(mean, rel=1e-15)
    assert told == [(3, pytest.approx(mean), {"bits_per_byte": pytest.approx(mean / math.log(2) / 2.5, rel=1e-14)})]


def test_the_best_checkpoint_is_the_first_with_the_lowest_loss(train, monkeypatch, tmp_path):
    """Neither the newest, nor a later one that is as good, nor one whose loss is no number."""
    values = iter([5.0, 3.0, 4.0, 3.0, math.nan, 3.5])
    monkeypatch.setattr(Loop, "evaluate", lambda self: next(values))
    _, _, loop = train(set(), "skip", train__eval_interval=2, checkpoint__interval=2, checkpoint__keep=1)
    assert loop.progress.best == {"update": 4, "val_loss": 3.0}
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert [int("".join(filter(str.isdigit, name))) for name in kept] == [4, 12]


POLICIES = ("skip", "stop", "rollback")


@pytest.mark.parametrize("lag", [1, 3])
@pytest.mark.parametrize("bad", [{5}, {6, 7}, {3, 4, 8, 9, 10}, {0, 11, 14}, set(range(8, 1000))])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_device_that_is_ahead_trains_the_same(train, tmp_path, policy, bad, lag):
    """Losses, decisions, states and checkpoints of a stack that is waited for; and it really was ahead."""
    found = []
    for kind in (Ahead, Waiting):
        fields = {"health__lag": lag, "health__max_consecutive": 4, "train__eval_interval": 6, "kind": kind}
        status, stack, loop = train(set(bad), policy, **fields)
        rows, _, events = read_metrics(tmp_path)
        kept = {path.name: (path / "state.json").read_text() for path in loop.checkpoints.complete()}
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        told = [(event["update"], event["event"]) for event in events if event["event"] != "checkpoint"]
        found.append((status, stack.value, loop.progress, rows, told, kept))
        assert stack.most == (lag + 1 if kind is Ahead else 1)
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "metrics.jsonl").unlink()
    assert found[0] == found[1]


def test_what_was_begun_after_a_stop_is_said_and_its_data_read_again(train, tmp_path):
    status, stack, loop = train({5}, "stop", kind=Ahead, health__lag=2)
    assert (status, stack.value, loop.progress.update, loop.progress.data_index) == ("stopped", 15, 5, 5)
    assert read_metrics(tmp_path)[2][-1]["event"] == "checkpoint"
    stop = next(event for event in read_metrics(tmp_path)[2] if event["event"] == "stop")
    assert stop["text"] == "loss is nan; 2 more that had been begun changed nothing"


def test_a_preempted_run_ends_what_it_has_begun(train, monkeypatch):
    """It then saves all of that; nothing more is begun."""
    monkeypatch.setattr(Loop, "report", lambda self, row, preemption: "SIGTERM" if row["update"] >= 4 else "")
    status, stack, loop = train(set(), "skip", kind=Ahead, health__lag=2, checkpoint__interval=100)
    assert (status, loop.progress.update, stack.value) == ("preempted", 7, sum(range(1, 8)))
    assert [path.name for path in loop.checkpoints.complete()] == ["update-00000007"]


def test_a_stack_that_judges_otherwise_is_found_out(train, monkeypatch):
    class Blind(Ahead):
        def update(self, batch, update, orders, change):
            return super().update(batch, update, replace(orders, limits=Limits(math.inf, math.inf)), change)

    fields = {"health__spike": "skip", "health__window": 8, "train__updates": 40, "health__lag": 2}
    assert train(set(), "skip", kind=Ahead, **fields)[2].progress.applied == 39
    with pytest.raises(RuntimeError, match="update 30 was applied"):
        train(set(), "skip", kind=Blind, **fields)

"""Verdicts on curves whose nature is known, drawn with noise; and what a user sees of them."""

import json
import math

import numpy as np
import pytest

from coretrain.config.run import RunConfig
from coretrain.diagnosis import curves as curves_room
from coretrain.diagnosis.curves import read_curves
from coretrain.diagnosis.read import Known, in_words, updates_of_an_epoch, verdict_of
from coretrain.diagnosis.verdict import diagnose

UPDATES, EVERY = 800, 50
NOISE = 0.06  # nats a token: the spread of one update's loss in a run of the default preset


def law(updates, floor=2.0, height=3.0, power=0.4):
    """A falling curve of nats a token."""
    return floor + height * (np.asarray(updates, float) + 10) ** -power


def rows_of(train, validation, seed=0, events=()):
    """Rows of metrics.jsonl: a training loss at each update with noise, a validation loss at each evaluation."""
    noise = np.random.default_rng(seed).normal(0, NOISE, len(train))
    updates = [
        {"update": at, "loss": float(loss) if math.isfinite(loss) else None, "lr": 1e-3, "grad_norm": 1.0}
        for at, loss in enumerate(np.asarray(train) + noise)
    ]
    at = range(EVERY, len(train) + 1, EVERY)
    evaluations = [{"update": done, "val_loss": float(validation(done))} for done in at]
    return updates, evaluations, [{"update": at, "event": kind, "text": ""} for at, kind in events]


def judged(train, validation, seed=0, epoch=None, events=(), frequencies=9.0, **fields):
    config = RunConfig().changed(train__updates=len(train), **fields)
    known = Known(epoch, frequencies) if epoch else None
    return verdict_of(config, *rows_of(train, validation, seed, events), known)


SHAPES = {
    # name: (training loss, validation loss, updates in an epoch)
    "underfitted": (law(range(UPDATES), 1.0, 3.0, 0.3), lambda n: law(n, 1.0, 3.0, 0.3), None),
    "fits": (law(range(UPDATES), 2.0, 3.0, 0.4), lambda n: law(n, 2.0, 3.0, 0.4), None),
    "at its limit": (law(range(UPDATES), 2.0, 30.0, 1.2), lambda n: law(n, 2.0, 30.0, 1.2), None),
    "overfitted": (
        law(range(UPDATES), 0.0, 12.0, 0.4),
        lambda n: law(n, 0.0, 12.0, 0.4) + 1e-6 * n**2 + 0.3,
        80,
    ),
    "short of data": (
        law(range(UPDATES), 1.5, 6.0, 0.5) - 0.1 * (np.arange(UPDATES) // 100),
        lambda n: law(n, 1.9, 6.0, 0.5),
        100,
    ),
}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_gets_its_name_whatever_the_noise(name, seed):
    train, validation, epoch = SHAPES[name]
    found = judged(train, validation, seed, epoch)
    assert found.name == name, found
    assert found.reasons
    assert found.next


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_spike_and_no_reread(seed):
    """2,000 updates of a falling loss, read twenty times: nothing leaps, and nothing is known by heart."""
    updates, evaluations, events = rows_of(law(range(2000)), law, seed)
    found = read_curves(updates, evaluations, events, 2000, 100.0, True)
    assert found.spikes == ()
    assert len(found.rereads) == 19
    assert sum(one.fall > 3 * one.error for one in found.rereads) <= 1  # of 19 normal ones .03 lie beyond 3


def test_a_spike_is_seen_at_its_update():
    train = law(range(UPDATES))
    train[400] += 1.5
    updates, evaluations, events = rows_of(train, law)
    assert read_curves(updates, evaluations, events, UPDATES, None, True).spikes == (400,)


def test_rows_that_are_known_are_seen_at_the_end_of_the_epoch():
    """The loss falls by a tenth of a nat each time the rows come again, and by nothing in between."""
    train = np.full(UPDATES, 3.0) - 0.1 * (np.arange(UPDATES) // 200)
    updates, evaluations, events = rows_of(train, law)
    found = read_curves(updates, evaluations, events, UPDATES, 200.0, True).rereads
    assert [one.epoch for one in found] == [1, 2, 3]
    for number, one in enumerate(found):
        assert abs(one.mean - (3.0 - 0.1 * number)) < 4 * NOISE / math.sqrt(200)
        assert abs(one.fall - 0.1) < 4 * one.error
        assert one.fall > 3 * one.error


@pytest.mark.parametrize(
    "events", [[(300, "rollback")], [(790, "stop")], [(at, "skip") for at in range(300, 320)]], ids=lambda e: e[0][1]
)
def test_what_the_health_check_did_makes_a_run_unstable(events):
    found = judged(law(range(UPDATES)), law, events=events)
    assert found.name == "unstable"
    assert any("--optimizer.lr" in knob for knob in found.next)


def test_one_skipped_update_of_many_is_no_trouble():
    assert judged(law(range(UPDATES)), law, events=[(300, "skip")]).name == "fits"


def test_a_run_that_diverges_is_unstable_not_overfitted():
    at = np.arange(UPDATES)
    train = np.where(at < 400, law(at), law(400) + 0.01 * (at - 400))
    assert judged(train, lambda n: np.interp(n, at, train)).name == "unstable"
    high = np.where(at < 100, law(0) * (1 + at / 100), law(at))
    found = judged(high, law)
    assert found.name == "unstable"
    assert "1.9 times what it began with" in found.reasons[-1]
    lost = law(at)
    lost[-3:] = math.nan
    assert judged(lost, law).name == "unstable"


def test_a_loss_of_frequencies_alone_is_stuck():
    """A run whose rate was 0.5 ended at 5.05 nats where the tokens' frequencies have 5.09."""
    flat = 5.05 + law(range(UPDATES), 0.0, 3.0, 0.8)
    found = judged(flat, lambda n: 5.1 + law(n, 0.0, 3.0, 0.8), epoch=1e6, frequencies=5.09)
    assert found.name == "stuck"
    assert judged(flat, lambda n: 5.1 + law(n, 0.0, 3.0, 0.8), epoch=1e6, frequencies=6.2).name != "stuck"


def test_few_updates_are_too_few_and_a_run_under_way_is_told_to_finish():
    assert judged(law(range(10)), law).name == "too short to say"
    config = RunConfig().changed(train__updates=4 * UPDATES)
    train, validation, _ = SHAPES["underfitted"]
    found = verdict_of(config, *rows_of(train, validation))
    assert found.name == "underfitted"
    assert "let it finish: 2,400 updates are left" in found.next[0]


def test_a_mixture_is_not_told_a_gap():
    """Its validation rows aren't drawn as its training rows are."""
    train, validation, _ = SHAPES["fits"]
    updates, evaluations, events = rows_of(train, lambda n: validation(n) + 1.0)
    apart = read_curves(updates, evaluations, events, UPDATES, None, comparable=True)
    mixed = read_curves(updates, evaluations, events, UPDATES, None, comparable=False)
    config = RunConfig().changed(train__updates=UPDATES)
    assert abs(apart.gap - 1.0) < 0.05
    assert any("above" in line for line in diagnose(apart, config).reasons)
    assert mixed.gap is None
    assert not any("above" in line for line in diagnose(mixed, config).reasons)
    replayed = config.changed(data__replay="stdlib")
    rows = rows_of(train, lambda n: validation(n) + 1.0)
    assert any("above" in line for line in verdict_of(config, *rows).reasons)
    assert not any("above" in line for line in verdict_of(replayed, *rows).reasons)


def test_a_rewarded_run_gets_no_verdict_of_its_loss():
    config = RunConfig().changed(train__updates=UPDATES, train__objective="dpo", data__format="pairs")
    assert verdict_of(config, *rows_of(law(range(UPDATES)), law)) is None


def test_lines_fit_a_terminal_of_80_columns():
    for train, validation, epoch in SHAPES.values():
        lines = in_words(judged(train, validation, epoch=epoch)).split("\n")
        assert max(map(len, lines)) <= 80
        assert lines[0].startswith("  why  ")
        assert any(line.startswith("  next  ") for line in lines)


def test_a_part_that_is_read_more_often_gives_the_epochs(tmp_path):
    """Of two parts with equal rows the one of three quarters of the batch comes round first."""

    class Split:
        def windows(self, context):
            return 120

    class Part:
        train = Split()

        def __init__(self, weight):
            self.weight = weight

    class Mixed:
        parts = (Part(3.0), Part(1.0), Part(0.0))  # the last waits for a later stage
        weights = (3.0, 1.0, 0.0)

    assert updates_of_an_epoch(RunConfig().changed(train__batch_size=16), Mixed()) == 120 / (16 * 0.75)


def test_planted_the_gap_turned_round_is_seen(monkeypatch):
    train, validation, epoch = SHAPES["short of data"]
    monkeypatch.setattr(curves_room.Curves, "gap", property(lambda found: found.train - found.validation[-1][1]))
    assert judged(train, validation, epoch=epoch).name != "short of data"


def test_planted_an_epoch_off_by_a_half_is_seen():
    """The fall stands at the epoch's end alone: 50 updates beside it there is none."""
    train = np.full(UPDATES, 3.0) - 0.1 * (np.arange(UPDATES) // 200)
    updates, evaluations, events = rows_of(train, law)
    found = read_curves(updates, evaluations, events, UPDATES, 250.0, True).rereads
    assert not any(one.fall > 3 * one.error for one in found)


def test_json_can_hold_it():
    train, validation, epoch = SHAPES["overfitted"]
    found = judged(train, validation, epoch=epoch)
    assert json.loads(json.dumps(vars(found)))["name"] == "overfitted"

"""What the loop hands to a stack and when, figure by figure: rates, factors, counts, evaluations, saves, the best one;
the loss scale's growth; and an evaluation's mean."""

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
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress, read_sealed
from coretrain.config.load import load_config
from coretrain.contract.sampling import Sampling
from coretrain.contract.schedule import learning_rate
from coretrain.data.batch import IGNORED, Batch, windows
from coretrain.journal.journal import SilentJournal
from coretrain.training.loop import Loop, LossScale
from coretrain.training.restore import check_resumable, restore
from coretrain.training.stack import InStep
from tests.support.checkpoints import native, updates
from tests.support.refusal import refused

CONTEXT = 4
ROWS = 2


class Told(InStep):
    """A stack that writes down what it is told; its losses and norms are given, by the index of the data."""

    name, device_name, writes_in_place = "torch", "cpu", False

    def __init__(self, given: dict[int, tuple[float, float]]) -> None:
        self.given, self.state = given, 0
        self.applied: list[tuple[float, float, int]] = []
        self.scales: list[float] = []
        self.loaded: list[int | None] = []

    def batches(self, data, start, stop):
        for index in range(start, stop):
            yield windows(np.full((ROWS, CONTEXT + 1), index, np.int32))

    def gradients(self, batch, update, loss_scale):
        self.scales.append(loss_scale)
        return self.given.get(int(batch.tokens[0, 0]), (5.0, 0.5))

    def apply(self, lr, factor, applied):
        self.applied.append((lr, factor, applied))
        self.state += 1

    def save(self, folder: Path):
        state = self.state
        return in_background(lambda: (folder / "state.json").write_text(json.dumps(state)))

    def load(self, folder: Path, applied):
        self.loaded.append(applied)
        self.state = json.loads((folder / "state.json").read_text())


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 10 updates: (how it ended, the stack, the loop, at which updates it was evaluated)."""

    def made(given=(), losses=(), start: Progress | None = None, **more: object):
        looked: list[int] = []

        def evaluate(self: Loop) -> float:
            looked.append(self.progress.update)
            return dict(losses).get(self.progress.update, 5.0)

        monkeypatch.setattr(Loop, "evaluate", evaluate)
        fields = {
            "model.context": CONTEXT, "model.vocab": 300, "train.updates": 10, "train.batch_size": ROWS,
            "schedule.warmup_updates": 3, "checkpoint.interval": 4, "checkpoint.keep": 9, "train.eval_interval": 3,
            "optimizer.clip": 0.25, "journal.tensorboard": "false", "health.lag": 0,
        } | {key.replace("__", "."): value for key, value in more.items()}  # fmt: skip
        config = load_config("tiny", [(key, str(value)) for key, value in fields.items()])
        stack = Told(dict(given))
        stack.config = config
        loop = Loop(config, stack, SimpleNamespace(), tmp_path, SilentJournal(), start or Progress())
        return loop.train(), stack, loop, looked

    return made


def saves(loop: Loop) -> dict[int, Progress]:
    """Progress of each checkpoint that is kept, by its update."""
    found = [read_sealed(path).progress for path in reversed(loop.checkpoints.complete())]
    return {progress.update: progress for progress in found}


def test_rates_factors_and_counts_of_a_run(run):
    """Update n has the rate of n, whether earlier ones were applied or not; bias correction counts the applied alone.
    Half the norm is cut: 0.25 / (0.5 + 1e-6)."""
    _, stack, loop, _ = run({4: (math.nan, 1.0), 6: (5.0, 0.1)})
    updates = [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [lr for lr, _, _ in stack.applied] == [learning_rate(loop.config, n) for n in updates]
    assert [applied for _, _, applied in stack.applied] == list(range(9))
    factors = [factor for _, factor, _ in stack.applied]
    assert factors == [1.0 if n == 6 else 0.49999900000199999 for n in updates]
    assert stack.scales == [1.0] * 10
    p = loop.progress
    assert (p.update, p.applied, p.data_index, p.tokens) == (10, 9, 10, 10 * ROWS * CONTEXT)


def test_when_it_is_evaluated_and_saved(run):
    """After every third update, and after every fourth; and after the last one, which is neither."""
    _, _, loop, looked = run()
    assert looked == [3, 6, 9, 10]
    assert list(saves(loop)) == [4, 8, 10]


def test_the_last_update_is_evaluated_and_saved_once(run):
    _, _, loop, looked = run(train__eval_interval=5, checkpoint__interval=5)
    assert (looked, list(saves(loop))) == ([5, 10], [5, 10])


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.0, 10: 4.0}, (4, 2.0)),  # a tie leaves the earlier one
        ({2: math.nan, 4: 3.0, 6: math.nan, 8: 4.0, 10: math.inf}, (4, 3.0)),  # what isn't finite is none
        ({2: 3.0, 4: 2.9, 6: 2.8, 8: 2.7, 10: 2.6}, (10, 2.6)),
        ({2: math.inf, 4: math.nan, 6: math.inf, 8: math.nan, 10: math.nan}, None),
        ({2: 0.0, 4: -1.0, 6: 5.0, 8: 5.0, 10: 5.0}, (4, -1.0)),
    ],
)
def test_the_best_one_by_hand(run, losses, best):
    """Evaluated and saved after every second update, one is kept; the best besides it."""
    _, _, loop, _ = run((), losses, train__eval_interval=2, checkpoint__interval=2, checkpoint__keep=1)
    assert loop.progress.best == (best and {"update": best[0], "val_loss": best[1]})
    assert loop.checkpoints.best() == (best and loop.checkpoints.final(best[0]))
    assert set(saves(loop)) == {10, best[0] if best else 10}
    noted = loop.checkpoints.path / "best.json"
    assert (json.loads(noted.read_text()) if noted.exists() else None) == loop.progress.best


def test_no_best_one_is_kept_where_none_is_to_be(run):
    losses = {2: 1.0, 4: 2.0, 6: 3.0, 8: 4.0, 10: 5.0}
    more = {"train__eval_interval": 2, "checkpoint__interval": 2, "checkpoint__keep": 2}
    _, _, loop, _ = run((), losses, checkpoint__keep_best="false", **more)
    assert list(saves(loop)) == [8, 10]
    assert loop.checkpoints.best() is None
    assert loop.progress.best == {"update": 2, "val_loss": 1.0}, "which is said all the same"


def test_an_evaluation_without_a_save_makes_no_best_one(run):
    """The lowest loss was seen where nothing was saved: there is nothing to keep of it."""
    _, _, loop, looked = run((), {3: 1.0, 6: 2.0, 8: 9.0, 9: 3.0, 10: 4.0})
    assert looked == [3, 6, 9, 10]
    assert loop.progress.best == {"update": 10, "val_loss": 4.0}


def test_all_that_is_saved(run):
    """Of a run with skips, in float16: each field of its progress, none of them its start's."""
    given = {1: (math.nan, 1.0), 2: (5.0, math.inf), 5: (math.nan, 1.0)}
    _, _, loop, _ = run(given, {3: 2.0}, precision__compute="float16", precision__loss_scale=1024)
    p = saves(loop)[4]
    assert (p.update, p.applied, p.data_index, p.tokens) == (4, 2, 4, 4 * ROWS * CONTEXT)
    assert p.loss_scale == {"scale": 512.0, "good": 1}
    assert p.health["counts"] == {"nonfinite": 1, "spike": 0}
    assert (p.health["losses"], p.health["norms"]) == ([5.0, 5.0], [0.5, 0.5])
    assert saves(loop)[8].health["counts"]["nonfinite"] == 2
    assert saves(loop)[8].loss_scale == {"scale": 512.0, "good": 4}


def test_a_run_goes_on_with_all_of_it(run):
    """Where it starts is what was saved: data ahead of the updates, the scale, the health's window and its count."""
    health = {"losses": [1.0], "norms": [2.0], "consecutive": 19, "counts": {"nonfinite": 19, "spike": 0}}
    start = Progress(
        update=6, applied=2, data_index=30, tokens=100, loss_scale={"scale": 32.0, "good": 1999},
        health=health | {"rolled_back_at": None, "furthest": -1, "rollbacks": 0}, best={"update": 4, "val_loss": 1.5},
    )  # fmt: skip
    given = {30: (5.0, 0.5), 31: (5.0, 0.5), 9: (math.nan, 1.0)}
    status, stack, loop, _ = run(given, (), start, precision__compute="float16", train__updates=8)
    assert status == "finished"
    assert stack.scales == [32.0, 64.0], "the two thousandth good update in a row doubles it"
    assert [applied for _, _, applied in stack.applied] == [2, 3]
    p = loop.progress
    assert (p.data_index, p.tokens, p.best) == (32, 100 + 2 * ROWS * CONTEXT, {"update": 4, "val_loss": 1.5})
    assert (p.health["losses"], p.health["consecutive"]) == ([1.0, 5.0, 5.0], 0)
    status, _, _, _ = run({30: (math.nan, 1.0)}, (), start, precision__compute="float16", train__updates=8)
    assert status == "stopped", "the twentieth skip in a row, nineteen of them before"


def test_float16_scales_are_undone_and_overflow_is_none_where_the_scale_is_1(run):
    """The factor is over the scale; at a scale of 1 a norm that isn't finite is a fault, and so is a loss."""
    _, stack, loop, _ = run({3: (5.0, math.inf)}, precision__compute="float16", precision__loss_scale=8)
    assert stack.scales == [8.0] * 4 + [4.0] * 6
    assert [factor for _, factor, _ in stack.applied] == [0.49999900000199999 / scale for scale in [8] * 3 + [4] * 6]
    assert loop.health.counts["nonfinite"] == 0
    _, stack, loop, _ = run(
        {3: (5.0, math.inf), 4: (5.0, math.nan)}, precision__compute="float16", precision__loss_scale=2
    )
    assert stack.scales == [2.0] * 4 + [1.0] * 6
    assert loop.health.counts["nonfinite"] == 1
    _, stack, loop, _ = run({3: (math.nan, math.nan)}, precision__compute="float16", precision__loss_scale=8)
    assert stack.scales == [8.0] * 10
    assert loop.health.counts["nonfinite"] == 1


def test_a_rollback_by_hand(run):
    """Bad data 5, saved after 4: back there, on with data 6, the windows of then; bias correction counts from there."""
    given = {index: (float(index), 0.5) for index in range(20)} | {5: (math.nan, 1.0)}
    _, stack, loop, _ = run(given, health__nonfinite="rollback")
    assert stack.loaded == [4]
    assert [applied for _, _, applied in stack.applied] == [0, 1, 2, 3, 4, *range(4, 10)]
    assert list(loop.health.losses) == [0.0, 1.0, 2.0, 3.0, *map(float, range(6, 12))]
    assert (loop.progress.data_index, loop.progress.update, stack.state) == (12, 10, 10)
    assert loop.progress.tokens == 10 * ROWS * CONTEXT


def test_the_loss_scale_grows_and_falls_by_hand():
    scale = LossScale(8.0)
    for _ in range(1999):
        scale.went_well()
    assert (scale.scale, scale.good) == (8.0, 1999)
    scale.went_well()
    assert (scale.scale, scale.good) == (16.0, 0)
    for _ in range(1500):
        scale.went_well()
    scale.overflowed()
    assert (scale.scale, scale.good) == (8.0, 0), "good ones are counted in a row"
    for _ in range(5):
        scale.overflowed()
    assert (scale.scale, scale.good) == (1.0, 0), "it never falls below 1"
    assert (LossScale(1.5).scale, coretrain.training.loop.SCALE_GROWS_AFTER) == (1.5, 2000)
    odd = LossScale(1.5)
    odd.overflowed()
    assert odd.scale == 1.0


def test_an_evaluation_is_the_mean_of_all_targets(tmp_path, monkeypatch):
    """By hand: sums 0.6 and 0.5 of 3 and 1 targets that weigh 1/8, 1/4, 1/16 and 1/16: 1.1 / 0.5; a byte has that
    over ln 2 and over the bytes of a label."""
    labels = np.array([[1, 2, 3, IGNORED]], np.int32)
    weighed = [np.array([[0.125, 0.25, 0.0625, 9.0]], np.float32), np.array([[0.0625, 7.0, 7.0, 7.0]], np.float32)]
    one = np.array([[4, IGNORED, IGNORED, IGNORED]], np.int32)
    batches = [Batch(labels, labels, None, weighed[0]), Batch(one, one, None, weighed[1])]
    monkeypatch.setattr(coretrain.training.text, "validation_batches", lambda data, config: batches)
    monkeypatch.setattr(coretrain.training.text, "validation_bytes_per_token", lambda data, config: 4.0)
    sums = iter([0.6, 0.5])
    told: list[tuple[float, ...]] = []
    journal = SilentJournal()
    journal.evaluation = lambda *figures: told.append(figures)
    stack = SimpleNamespace(name="torch", evaluate=lambda batch: next(sums))
    loop = Loop(load_config("tiny"), stack, SimpleNamespace(sets=()), tmp_path, journal, Progress(update=3))
    assert loop.evaluate() == pytest.approx(2.2, rel=1e-15)
    assert told == [
        (3, pytest.approx(2.2, rel=1e-15), {"bits_per_byte": pytest.approx(2.2 / math.log(2) / 4, rel=1e-15)})
    ]


def test_the_sample_at_the_end(tmp_path):
    """Temperature 0.7, top-p 0.9, the run's seed; no more than the context has room for; an empty prompt is a text's
    beginning."""
    asked: list[tuple] = []

    def generate(prompts, tokens, sampling, stop):
        asked.append((prompts, tokens, sampling, stop))
        return [[7]]

    tokenizer = SimpleNamespace(encode=lambda text: list(text.encode()), decode=lambda ids: "x", eot=256, ends=(256,))
    data = SimpleNamespace(tokenizer=tokenizer, template=None)
    for fields, prompt, tokens in (
        ({}, [97, 98, 99], 13),
        ({"train.sample_prompt": '""'}, [256], 15),
        ({"train.sample_tokens": "4"}, [97, 98, 99], 4),
    ):
        given = {"model.context": "16", "train.seed": "11", "train.sample_prompt": "abc"} | fields
        loop = Loop(
            load_config("tiny", list(given.items())), SimpleNamespace(name="torch", generate=generate), data, tmp_path,
            SilentJournal(), Progress(),
        )  # fmt: skip
        loop.sample()
        assert asked.pop() == ([prompt], tokens, Sampling(0.7, 0, 0.9, 11), (256,))
        assert asked == []


def test_a_run_goes_on_from_the_newest_and_text_comes_from_the_best(tmp_path):
    """Of six, all of whose manifests say that the fifth is the best: moments and count for training, none for text."""
    for update in range(1, 7):
        native(CheckpointFolder(tmp_path / "checkpoints"), update)
    seen: list[tuple[str, int | None]] = []
    stack = SimpleNamespace(name="torch", load=lambda path, applied: seen.append((path.name, applied)))
    assert restore(stack, tmp_path, print).update == 6
    assert restore(stack, tmp_path, print, for_text=True).update == 5
    assert seen == [("update-00000006", 6), ("update-00000005", None)]
    # what the newest says counts, which a checksum guards; best.json where that one isn't there
    folder = CheckpointFolder(tmp_path / "checkpoints")
    folder.note_best(2, 0.5)
    assert folder.best() == folder.final(5)
    shutil.rmtree(folder.final(5))
    assert folder.best() == folder.final(2)


def test_retention_by_hand(tmp_path):
    """Of six, the newest n and the best, which all of their manifests say is the fifth; and one that is pinned."""
    for keep, names in ((1, [6, 5]), (2, [6, 5]), (4, [6, 5, 4, 3]), (6, [6, 5, 4, 3, 2, 1]), (9, [6, 5, 4, 3, 2, 1])):
        folder = CheckpointFolder(tmp_path / str(keep))
        for update in range(1, 7):
            native(folder, update)
        folder.prune(keep)
        assert updates(folder) == [f"update-{update:08d}" for update in names]
        folder.pin("update-00000006", "ff")
        native(folder, 123_456_789)
        folder.prune(1)
        assert updates(folder) == ["update-123456789", "update-00000006", "update-00000005"], "nine digits too"


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        ({"data_fingerprint": "other"}, "training/data-fingerprint-differs", "other"),
        ({"batch_size": 5}, "training/field-differs-from-checkpoint", "train.batch_size"),
        ({"seed": 5}, "training/field-differs-from-checkpoint", "train.seed"),
    ],
)
def test_another_training_is_not_gone_on_with(change, code, name):
    config = load_config("tiny")
    progress = Progress(data_fingerprint="f", batch_size=config.train.batch_size, seed=config.train.seed)
    data = SimpleNamespace(fingerprint="f")
    check_resumable(config, data, progress)
    with refused(code, name):
        check_resumable(config, data, replace(progress, **change))

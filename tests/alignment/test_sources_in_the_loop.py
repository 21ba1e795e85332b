"""What the loop does with a source of batches: what it keeps of it, what it passes over, and what it journals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.base.threads import in_background
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress, read_sealed
from coretrain.config.load import load_config
from coretrain.contract.update import Figures
from coretrain.data.batch import windows
from coretrain.journal.answers import read_answers
from coretrain.journal.journal import Journal
from coretrain.journal.metrics import read_metrics
from coretrain.training.loop import Loop
from coretrain.training.saver import ARRAYS, kept_arrays

CONTEXT = 4


class Weight:
    """A stack of one number, which an update adds its batch's index + 1 to; its figures are read later."""

    name, device_name, writes_in_place, in_step = "torch", "cpu", False, False

    def __init__(self, bad: frozenset[int] = frozenset()) -> None:
        self.value, self.bad, self.under_way, self.most, self.calls = 0.0, bad, 0, 0, 0

    def update(self, batch, update, orders, change):
        self.calls += 1
        index = int(batch.tokens[0, 0])
        loss = math.nan if index in self.bad else 1.0 / (index + 1)
        change()
        fine = math.isfinite(loss)
        self.value += (index + 1) * fine
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def read() -> Figures:
            self.under_way -= 1
            return Figures(loss, 1.0, fine)

        return read

    def save(self, folder):
        value = self.value
        return in_background(lambda: (folder / "state.json").write_text(json.dumps(value)))

    def load(self, folder, applied):
        self.value, self.under_way = json.loads((folder / "state.json").read_text()), 0


class Counting:
    """Rollouts of 3 updates, whose number of made ones and whose weights when they were made are its state."""

    def __init__(self, stack: Weight, follows: bool = True, faults: frozenset[int] = frozenset()) -> None:
        self.stack, self.follows_weights, self.faults = stack, follows, faults
        self.made: list[tuple[int, float]] = []
        self.number, self.index, self.plane = -1, -1, np.zeros(0)

    def batches(self, start, stop):
        for index in range(start, stop):
            if index // 3 != self.number:
                self.number = index // 3
                self.plane = np.array([self.stack.value, index])
                self.made.append((index, self.stack.value))
            self.index = index
            yield windows(np.full((1, CONTEXT + 1), index, np.int32))

    def evaluate(self):
        return -self.stack.value, {"reward": self.stack.value}

    def answers(self):
        return [{"prompt": "p", "answer": str(n), "reward": self.stack.value, "ended": True} for n in range(20)]

    def figures(self):
        return {"reward": self.plane[0].item()}

    def fault(self):
        return f"rollout {self.number} can't be scored" if self.number in self.faults else ""

    def state(self):
        return {"number": self.number} if (self.index + 1) % 3 else {}

    def arrays(self):
        return {"plane": self.plane} if (self.index + 1) % 3 else {}

    def load(self, state, arrays):
        self.number, self.index = state.get("number", -1), -1
        self.plane = arrays.get("plane", np.zeros(0))


@pytest.fixture
def run(tmp_path):
    """A run of 12 updates that saves after every 4: (how it ended, the stack, its source, the loop)."""

    def made(stack: Weight, source: Counting | None = None, progress: Progress | None = None, **more: object):
        fields = {
            "model.context": CONTEXT, "model.vocab": 300, "train.updates": 12, "train.batch_size": 1,
            "schedule.warmup_updates": 2, "checkpoint.interval": 4, "checkpoint.keep": 9, "train.eval_interval": 6,
            "journal.tensorboard": "false", "health.lag": 3,
        } | {key.replace("__", "."): value for key, value in more.items()}  # fmt: skip
        config = load_config("tiny", [(key, str(value)) for key, value in fields.items()])
        source = source or Counting(stack)
        (tmp_path / "config.json").write_text(config.to_json())
        with Journal(tmp_path, config, "torch") as journal:
            start = progress or Progress()
            loop = Loop(config, stack, None, tmp_path, journal, start, source=source, kept={"reference": "abc"})
            status = loop.train()
            journal.close(status, loop.progress.best)
        return status, stack, source, loop

    return made


def test_a_source_that_follows_the_weights_is_asked_when_the_last_update_has_ended(run):
    """0 + 1 + 2 + 3 = 6 after three updates, 21 after six: the weights of the second and the third rollout."""
    status, stack, source, _ = run(Weight())
    assert (status, stack.most) == ("finished", 1)
    assert source.made == [(0, 0.0), (3, 6.0), (6, 21.0), (9, 45.0)]


def test_any_other_source_is_asked_ahead(run):
    stack = Weight()
    assert run(stack, Counting(stack, follows=False))[1].most == 4


def test_a_batch_is_known_by_what_was_read_not_by_what_a_model_said_of_it(run, tmp_path):
    """Two stacks that sample the same ids log the same hashes, whatever the last bits of their log-probabilities."""

    class Told(Counting):
        def __init__(self, stack, **planes):
            super().__init__(stack)
            self.planes = planes

        def batches(self, start, stop):
            for batch in super().batches(start, stop):
                yield batch.with_planes(**{name: np.full((1, CONTEXT), value) for name, value in self.planes.items()})

    def hashes(**planes):
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        stack = Weight()
        run(stack, Told(stack, **planes))
        return [row["batch_hash"] for row in read_metrics(tmp_path)[0]]

    once = hashes(share=0.25, advantages=0.5)
    assert len(set(once)) == 12
    measured = ("reference", "old", "advantages", "correction", "values", "returns", "kl_baseline")
    assert hashes(share=0.25, **dict.fromkeys(measured, 0.7)) == once
    for other in ({"share": 0.5}, {"share": 0.25, "margin": 1.0}, {"pair_share": 0.25}):
        assert set(hashes(**other)).isdisjoint(once)


def test_a_rollout_in_progress_is_kept_and_nothing_of_one_that_is_done(run, tmp_path):
    """The save after 4 updates falls into the second rollout, that after 12 behind the last."""
    run(Weight())
    found = {}
    for update in (4, 8, 12):
        folder = tmp_path / "checkpoints" / f"update-{update:08d}"
        sealed = read_sealed(folder)
        assert (ARRAYS in json.loads((folder / "manifest.json").read_text())["files"]) is (update < 12)
        found[update] = sealed.progress.align, {name: list(array) for name, array in kept_arrays(folder).items()}
    assert found == {
        4: ({"number": 1, "reference": "abc"}, {"plane": [6.0, 3.0]}),
        8: ({"number": 2, "reference": "abc"}, {"plane": [21.0, 6.0]}),
        12: ({"reference": "abc"}, {}),
    }


def test_a_rollback_takes_the_rollout_up_again(run):
    """Back from update 4 to the save before it: the second rollout isn't made anew, and its second batch is skipped."""
    stack = Weight(bad=frozenset({4}))
    status, _, source, loop = run(stack, health__nonfinite="rollback", train__updates=11)
    assert status == "finished"
    assert source.made == [(0, 0.0), (3, 6.0), (6, 16.0), (9, 40.0)]
    assert loop.progress.data_index == 12


@pytest.mark.parametrize("at", [0, 3, 4, 6, 11])
def test_what_was_learnt_is_saved_where_the_next_rollout_fails(run, tmp_path, at):
    """As where a reward raises. The run goes on from there; the save after update 4 isn't made twice."""

    class Failing(Counting):
        def batches(self, start, stop):
            for batch in super().batches(start, stop):
                if self.index == at:
                    self.index -= 1  # none was handed out
                    raise UserError("alignment/any", "the reward raised")
                yield batch

    stack = Weight()
    with pytest.raises(UserError, match="the reward raised"):
        run(stack, Failing(stack))
    whole = CheckpointFolder(tmp_path / "checkpoints").complete()
    assert [path.name for path in whole] == [f"update-{n:08d}" for n in sorted({at, *range(4, at, 4)} - {0})[::-1]]
    assert not list((tmp_path / "checkpoints").glob(".tmp*"))
    if at:
        saved = read_sealed(whole[0]).progress
        assert (saved.update, json.loads((whole[0] / "state.json").read_text())) == (at, sum(range(at + 1)))
        assert (ARRAYS in json.loads((whole[0] / "manifest.json").read_text())["files"]) is bool(at % 3)


def test_a_batch_with_a_fault_is_passed_over_without_an_update(run, tmp_path):
    stack = Weight()
    status, _, _, loop = run(stack, Counting(stack, faults=frozenset({1})))
    assert (status, stack.calls, loop.progress.update, loop.progress.applied) == ("finished", 9, 12, 9)
    updates, _, events = read_metrics(tmp_path)
    assert [(row["update"], row["text"]) for row in events if row["event"] == "skip"] == [
        (update, "rollout 1 can't be scored") for update in (3, 4, 5)
    ]
    assert [row["update"] for row in updates if row["loss"] is None] == [3, 4, 5]


def test_a_run_stops_after_too_many_faults_in_a_row(run):
    stack = Weight()
    source = Counting(stack, faults=frozenset(range(9)))
    status, _, _, loop = run(stack, source, health__max_consecutive=5)
    assert (status, stack.calls, loop.progress.update) == ("stopped", 0, 4)


def test_figures_and_answers_are_journalled(run, tmp_path):
    run(Weight())
    updates, evaluations, _ = read_metrics(tmp_path)
    assert [row["reward"] for row in updates] == [0.0] * 3 + [6.0] * 3 + [21.0] * 3 + [45.0] * 3
    assert [(row["update"], row["val_loss"], row["val_reward"]) for row in evaluations] == [
        (6, -21.0, 21.0),
        (12, -78.0, 78.0),
    ]
    answers = read_answers(tmp_path)
    assert [(row["update"], row["reward"]) for row in answers] == [(6, 21.0)] * 8 + [(12, 78.0)] * 8
    assert "Sampled answers" in (tmp_path / "report.html").read_text()


def test_a_checkpoint_without_a_source_has_the_fields_that_it_always_had():
    """Progress of text is byte for byte what it was, and what an earlier version wrote is read."""
    written = Progress(update=3).to_json()
    assert "align" not in written
    assert Progress.from_json(written) == Progress(update=3)
    kept = Progress(update=3, align={"kl_coefficient": 0.1}).to_json()
    assert Progress.from_json(json.loads(json.dumps(kept))).align == {"kl_coefficient": 0.1}

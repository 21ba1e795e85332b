"""Two runs: at which update they part, between which checkpoints, and what the replay of that interval names."""

import functools
import random

import pytest
import torch

import torchtrain.model
import torchtrain.trainer
from coretrain.errors import UserError
from coretrain.runner import run
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.replay import localize_runs
from parity.runs import compare_runs
from parity.snapshots import Snapshots, bisect
from torchtrain.trainer import Trainer as TorchTrainer


@pytest.fixture(scope="module", autouse=True)
def small_and_alone():
    """The models are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SNAPSHOTS = "--checkpoint.interval=2", "--checkpoint.keep=100"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A maker of small runs, each kept; and the first of them."""
    root = tmp_path_factory.mktemp("runs")
    rng = random.Random(0)
    corpus = root / "corpus"
    corpus.mkdir()
    for n in range(60):
        (corpus / f"{n}.txt").write_text(" ".join(rng.choices(["def", "return", "self", "index", "None"], k=80)))
    small = {
        "model.layers": 1, "model.width": 32, "model.heads": 4, "model.context": 32, "data.source": corpus,
        "data.tokenizer": "bytes", "data.validation_fraction": 0.1, "data.cache": root / "cache",
        "data.prepare_processes": 1, "train.updates": 12, "train.batch_size": 4, "train.eval_interval": 12,
        "train.eval_batches": 1, "train.sample_tokens": 0, "schedule.warmup_updates": 3,
        "journal.tensorboard": "false", "execution.device": "cpu",
        "execution.compile": "off",
    }  # fmt: skip

    @functools.cache
    def make(name, stack="torch", *more):
        trainer = {"torch": TorchTrainer, "jax": JaxTrainer}[stack]
        fields = [f"--{key}={value}" for key, value in small.items()]
        assert run([*fields, f"--output={root / name}", *more], stack, trainer) == 0
        return root / name

    return make


def test_two_equal_runs(runs):
    verdict = compare_runs(runs("a"), runs("again")).verdict
    assert verdict.kind == "same"
    assert "bit for bit" in verdict.sentence


def test_runs_of_both_stacks_part_by_rounding_only(runs):
    verdict = compare_runs(runs("a"), runs("jax", "jax")).verdict
    assert verdict.kind == "rounding or kernel", verdict.sentence
    assert verdict.error < 1e-5


def test_runs_whose_data_or_schedule_differ(runs):
    verdict = compare_runs(runs("a"), runs("seed", "torch", "--train.seed=7")).verdict
    assert (verdict.kind, verdict.tap) == ("data", "batch of update 0")
    assert "train.seed" in verdict.sentence
    verdict = compare_runs(runs("a"), runs("longer", "torch", "--schedule.warmup_updates=4")).verdict
    assert (verdict.kind, verdict.tap) == ("schedule", "learning rate of update 0")
    verdict = compare_runs(runs("a"), runs("end", "torch", "--schedule.min_lr=1e-5")).verdict
    assert verdict.kind == "schedule"
    assert verdict.tap == "learning rate of update 4"


def test_runs_that_part_at_a_known_update(runs, monkeypatch):
    """A step that goes wrong from the sixth on: the loss of the seventh, update 6, shows it."""
    correct = runs("kept", "torch", *SNAPSHOTS)
    original, count = torchtrain.trainer.Optimizer.step, []

    def step(self, lr, factor):
        count.append(0)
        original(self, 3 * lr if len(count) > 5 else lr, factor)

    monkeypatch.setattr(torchtrain.trainer.Optimizer, "step", step)
    report = compare_runs(correct, runs("wrong", "torch", *SNAPSHOTS))
    assert (report.verdict.kind, report.verdict.tap) == ("algorithm", "loss of update 6")
    assert "the configs agree" in report.verdict.sentence
    assert "update-00000006 the first that doesn't" in report.verdict.sentence
    assert any(row.stage == "parameters" and row.parts for row in report.rows)


def test_runs_of_another_model_or_none(runs, tmp_path):
    verdict = compare_runs(runs("a"), runs("norm", "torch", "--model.norm=layernorm")).verdict
    assert (verdict.kind, verdict.tap) == ("algorithm", "loss of update 0")
    assert "model.norm" in verdict.sentence
    with pytest.raises(UserError, match=r"no config\.json"):
        compare_runs(runs("a"), tmp_path)


def wrong_from_the_sixth_update(patch):
    """A step that is three times too long from update 5 on, and in every later use."""
    original, count = torchtrain.trainer.Optimizer.step, []

    def step(self, lr, factor):
        count.append(0)
        original(self, 3 * lr if len(count) > 5 else lr, factor)

    patch.setattr(torchtrain.trainer.Optimizer, "step", step)


def listing(*folders):
    """Every file with its size and time."""
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for f in folders for p in f.rglob("*") if p.is_file()}


@pytest.mark.parametrize("other", ["torch", "jax"])
def test_the_interval_in_which_runs_part(runs, monkeypatch, other):
    """Found in few checkpoints, replayed from the last good one, and nothing of it written into the runs."""
    correct = runs(f"kept by {other}" if other == "jax" else "kept", other, *SNAPSHOTS)
    with monkeypatch.context() as patch:
        wrong_from_the_sixth_update(patch)
        wrong = runs(f"wrong beside {other}", "torch", *SNAPSHOTS)
        before = listing(correct, wrong)
        report = localize_runs(wrong, correct)
    assert report.verdict.kind == "algorithm"
    assert report.verdict.tap.startswith("step of "), report.verdict.sentence
    for words in (
        "6 common checkpoints update-00000004 is the last that agrees",
        "update-00000006 the first that doesn't",
        "replayed from update-00000004 on the run's own rows",
    ):
        assert words in report.verdict.sentence, report.verdict.sentence
    assert {row.stage for row in report.rows} >= {"forward", "gradient", "parameter", "parameters", "loss"}
    # the code as it is has no such fault any more
    report = localize_runs(correct, wrong)
    assert (report.verdict.kind, report.verdict.tap) == ("algorithm", "loss of update 6")
    assert "nothing parts" in report.verdict.sentence
    assert listing(correct, wrong) == before


def test_a_config_that_differs_is_named_by_the_replay(runs):
    """Each side of the replay goes by its own run's config: nothing was trained yet, and the norm shows it."""
    verdict = localize_runs(runs("a"), runs("epsilon", "torch", "--model.norm_eps=1e-2")).verdict
    assert (verdict.kind, verdict.tap) == ("algorithm", "blocks.0.norm1")
    assert "none is the last" in verdict.sentence
    assert "replayed from the initial weights" in verdict.sentence
    verdict = localize_runs(runs("a"), runs("gelu", "torch", "--model.mlp=gelu")).verdict
    assert "not replayed: their models have other tensors" in verdict.sentence


def test_states_may_part_where_losses_do_not(runs, monkeypatch):
    """Moments of the last update: no loss comes after it."""
    correct = runs("kept", "torch", *SNAPSHOTS)
    original, count = torchtrain.trainer.Optimizer.step, []

    def step(self, lr, factor):
        count.append(0)
        original(self, lr, factor)
        if len(count) == 12:
            for state in self.adam.state.values():
                state["exp_avg_sq"].mul_(1.5)

    monkeypatch.setattr(torchtrain.trainer.Optimizer, "step", step)
    verdict = compare_runs(correct, runs("moment", "torch", *SNAPSHOTS)).verdict
    assert verdict.kind == "algorithm"
    assert verdict.tap.startswith("second moment of ")
    assert "update-00000010 is the last" in verdict.sentence


def test_damaged_checkpoints_are_left_out(runs, tmp_path, monkeypatch):
    """With the newest damaged the one before it is the newest, and a search looks at few."""
    correct = runs("kept", "torch", *SNAPSHOTS)
    wrong_from_the_sixth_update(monkeypatch)
    sides = correct, runs("wrong beside torch", "torch", *SNAPSHOTS)
    snapshots = [Snapshots(run, tmp_path / str(n)) for n, run in enumerate(sides)]
    opened = []

    def opening(name, own=snapshots[0].open):
        opened.append(name)
        if name == "update-00000012":
            raise UserError("damaged")
        return own(name)

    snapshots[0].open = opening
    interval = bisect(*snapshots, "float32")
    assert (interval.common, interval.good, interval.bad) == (5, "update-00000004", "update-00000006")
    assert len(opened) <= 5

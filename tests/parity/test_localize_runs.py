"""Two runs: at which update they part, between which checkpoints, and what the replay of that interval names."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import shutil
import types

import pytest

import jaxtrain.choices
import parity.localize.runs
import torchtrain.attention
import torchtrain.model
import torchtrain.trainer
from coretrain.base.errors import UserError
from coretrain.journal.segments import SEGMENTS, Segment
from coretrain.training.runner import run
from jaxtrain.trainer import Trainer as JaxTrainer
from parity.localize.history import read_history
from parity.localize.replay import localize_runs
from parity.localize.runs import _precision, compare_runs
from parity.localize.snapshots import Snapshots, bisect
from tests.support.refusal import refused
from torchtrain.trainer import Trainer as TorchTrainer

pytestmark = pytest.mark.whole

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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtrain.choices, "COMPILE_CACHE_AFTER", 0.0)  # what one replay compiles the next one reads
        yield make


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
    assert (report.verdict.kind, report.verdict.tap) == ("unconfirmed", "loss of update 6")
    assert "the configs agree" in report.verdict.sentence
    assert "update-00000006 the first that doesn't" in report.verdict.sentence
    assert any(row.stage == "parameters" and row.parts for row in report.rows)


def copied(run, to, change):
    """A run's config and journal, with `change` made to each line of the journal that has a loss."""
    to.mkdir()
    (to / "config.json").write_text((run / "config.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (to / "metrics.jsonl").write_text("".join(json.dumps(change(row) if "loss" in row else row) + "\n" for row in rows))
    return to


def test_rounding_grows_from_the_first_update_that_is_not_equal(runs, tmp_path):
    """Equal bit for bit up to update 9, and then off by more than rounding makes at first: not called rounding."""

    def off(row):
        return row | {"loss": row["loss"] * (1 + 3e-6)} if row["update"] >= 9 else row

    verdict = compare_runs(runs("a"), copied(runs("a"), tmp_path / "off", off)).verdict
    assert (verdict.kind, verdict.tap) == ("unconfirmed", "loss of update 9")


def test_a_loss_that_is_no_number_in_both_is_named(runs, tmp_path):
    def broken(row):
        return row | {"loss": None} if row["update"] >= 5 else row

    sides = [copied(runs("a"), tmp_path / name, broken) for name in "ab"]
    verdict = compare_runs(*sides).verdict
    assert (verdict.kind, verdict.tap) == ("unconfirmed", "loss of update 5")
    assert "no number in either" in verdict.sentence


def test_only_a_precision_makes_a_dtype_policy(runs, tmp_path):
    """A chunk of the loss that differs beside a wrong loss is said and not blamed; bfloat16 is looser than float16."""
    other = copied(runs("a"), tmp_path / "chunk", lambda row: row | {"loss": row["loss"] * 1.5})
    fields = json.loads((other / "config.json").read_text())
    fields["execution"]["loss_chunk"] = 7
    (other / "config.json").write_text(json.dumps(fields))
    verdict = compare_runs(runs("a"), other).verdict
    assert verdict.kind == "unconfirmed"
    assert "execution.loss_chunk" in verdict.sentence
    fields["precision"]["compute"] = "bfloat16"
    (other / "config.json").write_text(json.dumps(fields))
    assert compare_runs(runs("a"), other).verdict.kind == "dtype policy"
    key = "precision.compute", "precision.fast_matmul"
    assert _precision([dict(zip(key, (name, False), strict=True)) for name in ("float16", "bfloat16")]) == "bfloat16"
    assert _precision([dict(zip(key, ("float32", fast), strict=True)) for fast in (True, False)]) == "float16"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model": {'),
        ("config.json", b"[]"),
        ("config.json", b"\xff\xfe"),
        ("metrics.jsonl", b"\xff\xfe\n"),
        ("metrics.jsonl", b"7\n"),
        ("metrics.jsonl", b'{"update": 0, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0}\n'),
    ],
)
def test_a_folder_that_is_no_whole_run_is_one_sentence(runs, tmp_path, name, content):
    folder = copied(runs("a"), tmp_path / "torn", dict)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name.split(".")[0]):
        compare_runs(runs("a"), folder)


def test_runs_of_another_model_or_none(runs, tmp_path):
    verdict = compare_runs(runs("a"), runs("norm", "torch", "--model.norm=layernorm")).verdict
    assert (verdict.kind, verdict.tap) == ("unconfirmed", "loss of update 0")
    assert "model.norm" in verdict.sentence
    with refused("parity/not-a-run"):
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
        "on the run's own rows",
    ):
        assert words in report.verdict.sentence, report.verdict.sentence
    assert {row.stage for row in report.rows} >= {"forward", "gradient", "parameter", "parameters", "loss"}
    # the code as it is has no such fault any more
    report = localize_runs(correct, wrong)
    assert report.verdict.kind == "algorithm"
    assert report.verdict.tap.endswith(" after 6 updates of the second run"), report.verdict.tap
    assert "the first run comes out bit for bit in updates 0 to 11" in report.verdict.sentence
    assert "nothing parts" in report.verdict.sentence
    assert listing(correct, wrong) == before


def test_a_config_that_differs_is_named_by_the_replay(runs):
    """Each side of the replay goes by its own run's config: nothing was trained yet, and the norm shows it."""
    verdict = localize_runs(runs("a"), runs("epsilon", "torch", "--model.norm_eps=1e-2")).verdict
    assert (verdict.kind, verdict.tap) == ("config", "blocks.0.norm1")
    assert "none is the last" in verdict.sentence
    assert "replayed from the initial weights" in verdict.sentence
    verdict = localize_runs(runs("a"), runs("gelu", "torch", "--model.mlp=gelu")).verdict
    assert verdict.kind == "config"
    assert "not replayed: their models have other tensors" in verdict.sentence


def test_correct_runs_are_acquitted_by_their_replay(runs, monkeypatch):
    """However far their figures part: here further than a curve allows that expects no rounding at all."""
    monkeypatch.setattr(parity.localize.runs, "allowance", lambda update, precision: 0.0)
    sides = runs("a"), runs("jax", "jax")
    assert compare_runs(*sides).verdict.kind == "unconfirmed"
    verdict = localize_runs(*sides).verdict
    assert verdict.kind == "rounding or kernel", verdict.sentence
    assert "nothing parts" in verdict.sentence
    assert verdict.sentence.count("bit for bit in updates 0 to 11") == 2


def test_a_bug_as_small_as_rounding_is_found(runs, monkeypatch):
    """No figure shows it, and the code that judges has it: the stacks part in float64."""
    original = torchtrain.attention.math.sqrt
    monkeypatch.setattr(torchtrain.attention, "math", types.SimpleNamespace(sqrt=lambda x: original(x) * (1 + 1e-6)))
    verdict = localize_runs(runs("scale", "torch"), runs("jax", "jax")).verdict
    assert (verdict.kind, verdict.tap) == ("algorithm", "blocks.0.attention"), verdict.sentence


def test_a_bug_in_the_code_that_judges_is_not_taken_for_rounding(runs, monkeypatch):
    """The other stack's training acquits the clean run; so float64 must show that the stacks are alike."""
    clean = runs("chunked", "torch", "--execution.loss_chunk=37")
    original = torchtrain.trainer.initial_parameters

    def wider(*args):
        weights = dict(original(*args))
        return weights | {"blocks.0.attention.out.weight": 1.4 * weights["blocks.0.attention.out.weight"]}

    monkeypatch.setattr(torchtrain.trainer, "initial_parameters", wider)
    verdict = localize_runs(runs("wider", "torch"), clean).verdict
    assert (verdict.kind, verdict.tap) == ("algorithm", "initial weight blocks.0.attention.out.weight")
    assert "the other stack's training being a measure of it" in verdict.sentence


@pytest.mark.parametrize(
    ("off", "processor", "kind"),
    [(1e-7, "another", "rounding or kernel"), (1e-7, "", "other code"), (1e-3, "another", "algorithm")],
)
def test_a_run_of_other_code_is_named(runs, tmp_path, off, processor, kind):
    """What isn't equal bit for bit is measured by what 1 ULP of the weights makes of the same updates; on the same
    processor it would be equal.
    """
    other = tmp_path / "other"
    shutil.copytree(runs("a"), other)
    if processor:
        (one,) = json.loads((other / SEGMENTS).read_text())
        (other / SEGMENTS).write_text(json.dumps([one | {"made_with": one["made_with"] | {"processor": processor}}]))
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"loss": row["loss"] * (1 + off)} if "loss" in row and row["update"] == 9 else row for row in rows]
    (other / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdict = localize_runs(runs("a"), other).verdict
    assert verdict.kind == kind, verdict.sentence
    if kind == "algorithm":
        assert verdict.tap == "loss of update 9 of the second run"
    elif kind == "other code":
        assert verdict.tap == "bits of the second run"


def test_whose_rows_are_not_in_order(runs, tmp_path):
    def permuted(row):
        return row | {"batch_hash": "0"} if row["update"] == 7 else row

    verdict = localize_runs(copied(runs("a"), tmp_path / "permuted", permuted), runs("a")).verdict
    assert (verdict.kind, verdict.tap) == ("data", "batch of update 7")
    assert "the second run has the rows that its config asks for, the first hasn't" in verdict.sentence


def test_decisions_that_its_figures_do_not_ask_for(runs, tmp_path):
    """An update that was applied though its norm is no number, and one that was skipped for nothing."""
    broken = copied(runs("a"), tmp_path / "b", lambda row: row | {"grad_norm": None} if row["update"] == 4 else row)
    assert read_history(broken).decisions_that_differ() == [4]
    verdict = compare_runs(runs("a"), broken).verdict
    assert verdict.kind != "health"  # both did the same about it
    with open(broken / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"update": 2, "event": "skip", "text": "for nothing"}) + "\n")
    assert read_history(broken).decisions_that_differ() == [2, 4]
    verdict = compare_runs(runs("a"), broken).verdict
    assert (verdict.kind, verdict.tap) == ("health", "decision on update 2")
    assert read_history(runs("a")).decisions_that_differ() == []


def test_updates_of_one_stack_end_where_the_other_goes_on(runs):
    """A resume in the same stack before it changes nothing."""
    made = [Segment(first, stack, "cpu") for first, stack in ((0, "torch"), (4, "torch"), (8, "jax"), (10, "torch"))]
    history = dataclasses.replace(read_history(runs("a")), segments=made)
    assert [history.of_one_stack(first, 12) for first in (0, 5, 8, 10)] == [8, 8, 10, 12]
    assert history.of_one_stack(0, 6) == 6


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
    assert verdict.kind == "unconfirmed"
    assert verdict.tap.startswith("second moment of ")
    assert "update-00000010 is the last" in verdict.sentence


def test_damaged_checkpoints_are_left_out(runs, tmp_path, monkeypatch):
    """With the newest damaged the one before it is the newest, and a search looks at few."""
    correct = runs("kept", "torch", *SNAPSHOTS)
    wrong_from_the_sixth_update(monkeypatch)
    # not the run that test_the_interval_in_which_runs_part makes, whose step counts on in what is replayed
    sides = correct, runs("wrong", "torch", *SNAPSHOTS)
    snapshots = [Snapshots(run, tmp_path / str(n)) for n, run in enumerate(sides)]
    opened = []

    def opening(name, own=snapshots[0].open):
        opened.append(name)
        if name == "update-00000012":
            raise UserError("checkpoint/damaged", "damaged")
        return own(name)

    snapshots[0].open = opening
    interval = bisect(*snapshots, "float32")
    assert (interval.common, interval.good, interval.bad) == (5, "update-00000004", "update-00000006")
    assert len(opened) <= 5
    assert interval.left_out == ["update-00000012 is left out, damaged"]


def test_what_was_changed_or_lost_in_a_run_is_said(runs, tmp_path):
    """A newest checkpoint that is damaged, a journal with a hole, a rate that no checkpoint was trained with."""
    correct, other = runs("kept", "torch", *SNAPSHOTS), tmp_path / "other"
    shutil.copytree(correct, other)
    for kind in ("checkpoints", "interchange"):
        (other / kind / "update-00000012" / "manifest.json").unlink()
    rows = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(row for row in rows if not row.startswith('{"update": 5, "loss"')))
    fields = json.loads((other / "config.json").read_text())
    fields["optimizer"]["lr"] = 0.5
    (other / "config.json").write_text(json.dumps(fields))
    sentence = compare_runs(correct, other).verdict.sentence
    for words in ("update-00000012 is left out", "manifest.json", "lacks 1 of 12 updates (5)", "optimizer.lr = 0.5"):
        assert words in sentence, sentence
    fields["model"]["norm_eps"] = 0.5
    (other / "config.json").write_text(json.dumps(fields))
    with refused("runs/config-not-as-trained", "model.norm_eps"):
        localize_runs(correct, other)

"""A run that begins from another with its moments: `keep` goes on as the old one would; `warm`; refusals; `--from`."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import coretrain.runs.moments as moments
import coretrain.training.restore as restore
from coretrain.checkpoint.interchange import interchange_of, load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters
from coretrain.contract.schedule import learning_rate
from coretrain.data.open import open_data
from coretrain.journal.journal import SilentJournal
from coretrain.processes.world import World
from coretrain.runs.start import open_start
from coretrain.training.command_line import parse
from coretrain.training.loop import Loop
from coretrain.training.resolve import completed, resolve
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.refusal import refused
from tests.support.whole_runs import arguments, rows, run, state
from torchtrain.trainer import Trainer as TorchTrainer

TRAINERS = {"torch": TorchTrainer, "jax": JaxTrainer}
SIDES = pytest.mark.parametrize("stack", ["torch", pytest.param("jax", marks=pytest.mark.whole)])
"""JAX compiles each run anew, tens of seconds: most of its share is in the whole of the tests alone."""
HALF, WHOLE = 3, 6


@pytest.fixture
def made(corpus):
    """A function: the config of a small run at a constant rate, in float64, which depends on nothing but its data."""

    def make(**more: object):
        steady = {
            "precision.compute": "float64", "model.residual_dropout": 0.0, "schedule.kind": "constant",
            "schedule.warmup_updates": 0, "train.updates": WHOLE, "train.eval_interval": 1000, "optimizer.eps": 1e-6,
            "checkpoint.interval": 1000,
        } | {key.replace("__", "."): value for key, value in more.items()}  # fmt: skip
        words = arguments(corpus, *(f"--{key}={value}" for key, value in steady.items()))
        return parse(words, "run", "").config.with_vocab(257)

    return make


def trained(stack, config, folder, progress=None) -> dict[str, np.ndarray]:
    """The state after a run of a stack that is made, which it leaves as an interchange checkpoint too."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    loop = Loop(config, stack, open_data(config), folder, SilentJournal(), progress or Progress())
    assert loop.train() == "finished"
    restore.export(stack, config, loop.progress, folder)
    return state(folder)


def halves(made, tmp_path, first: str, second: str, asked: str = "keep", **more):
    """The state after a whole run, and after one of half its updates from which another begins; with the second's."""
    config = made(**more)
    whole = trained(TRAINERS[second](config), config, tmp_path / "whole")
    short = config.changed(train__updates=HALF)
    trained(TRAINERS[first](short), short, tmp_path / "first")
    new = short.changed(train__start=str(tmp_path / "first"), train__start_moments=asked)
    start = open_start(new)
    stack = TRAINERS[second](new, start)
    progress = restore.begin_from(stack, start, new, Progress(data_index=HALF), World())
    assert (progress.update, progress.applied, progress.origin["update"]) == (0, HALF, HALF)
    return whole, trained(stack, new, tmp_path / "second", progress)


def furthest(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The largest difference of a tensor, over its own norm; a key's bias has no gradient but noise."""
    assert ours.keys() == theirs.keys()
    names = [name for name in ours if "attention.k.bias" not in name]
    return max(float(np.linalg.norm(ours[n] - theirs[n]) / (np.linalg.norm(theirs[n]) + 1e-300)) for n in names)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@SIDES
def test_keep_goes_on_bit_for_bit(stack, optimizer, made, tmp_path):
    whole, parts = halves(made, tmp_path, stack, stack, optimizer__name=optimizer)
    assert [name for name in whole if not np.array_equal(whole[name], parts[name])] == []


CAP = 1e-13
"""float64, two stacks, 6 updates: 1e-15 was measured. A lost count makes 0.2, weights rounded to float32 1e-7."""


@pytest.mark.parametrize(("first", "second"), [("torch", "jax"), ("jax", "torch")])
def test_keep_goes_on_in_the_other_stack(first, second, made, tmp_path):
    whole, parts = halves(made, tmp_path, first, second)
    assert furthest(parts, whole) < CAP


def _swapped(groups: dict) -> dict:
    return {"first_moment": groups["second_moment"], "second_moment": groups["first_moment"]}


def _zero(group: str):
    return lambda groups: groups | {group: {name: np.zeros_like(groups[group][name]) for name in groups[group]}}


BUGS = {
    "moments swapped": _swapped,
    "first moment lost": _zero("first_moment"),
    "second moment lost": _zero("second_moment"),
}


@SIDES
@pytest.mark.parametrize("bug", BUGS)
def test_moments_that_are_not_the_starts_are_seen(stack, bug, made, tmp_path, monkeypatch):
    right = moments.moments_of
    monkeypatch.setattr(restore, "moments_of", lambda start, config: BUGS[bug](right(start, config)))
    whole, parts = halves(made, tmp_path, stack, stack)
    assert not furthest(parts, whole) < 1e6 * CAP  # a root of a first moment is no number


@SIDES
def test_a_lost_count_is_seen(stack, made, tmp_path, monkeypatch):
    """Adam's corrections begin anew over moments that are full."""
    if stack == "torch":  # which counts for itself, from what it is told when it takes the state
        adopt = TorchTrainer.adopt
        monkeypatch.setattr(TorchTrainer, "adopt", lambda trainer, groups, applied: adopt(trainer, groups, 0))
    config = made()
    whole = trained(TRAINERS[stack](config), config, tmp_path / "whole")
    short = config.changed(train__updates=HALF)
    trained(TRAINERS[stack](short), short, tmp_path / "first")
    new = short.changed(train__start=str(tmp_path / "first"), train__start_moments="keep")
    start = open_start(new)
    trainer = TRAINERS[stack](new, start)
    progress = restore.begin_from(trainer, start, new, Progress(data_index=HALF), World())
    if stack == "jax":  # which is told it in each update
        progress = replace(progress, applied=0)
    assert furthest(trained(trainer, new, tmp_path / "second", progress), whole) > 1e6 * CAP


@SIDES
def test_weights_of_a_rounded_copy_are_seen(stack, made, tmp_path, monkeypatch):
    right = TRAINERS[stack].adopt

    def rounded(self, groups, applied):
        narrow = {n: np.asarray(groups["parameters"][n], np.float32).astype(np.float64) for n in groups["parameters"]}
        right(self, {**groups, "parameters": narrow}, applied)

    monkeypatch.setattr(TRAINERS[stack], "adopt", rounded)
    whole, parts = halves(made, tmp_path, stack, stack)
    assert furthest(parts, whole) > 1e5 * CAP  # 1e-7: float32's roundings


@SIDES
def test_the_first_update_of_warm(stack, made, tmp_path):
    """By the rule of Adam: the second moment and its correction go on, the first begins and isn't corrected for it."""
    short = made(train__updates=HALF)
    before = trained(TRAINERS[stack](short), short, tmp_path / "first")
    new = short.changed(train__updates=1, train__start=str(tmp_path / "first"), train__start_moments="warm")
    start = open_start(new)
    trainer = TRAINERS[stack](new, start)
    progress = restore.begin_from(trainer, start, new, Progress(), World())
    begun = trainer.export()
    after = {}
    for name in start:
        assert not np.any(begun["first_moment"][name])
        np.testing.assert_array_equal(begun["second_moment"][name], before[f"second_moment/{name}"])
    after = trained(trainer, new, tmp_path / "second", progress)
    rule, lr = new.optimizer, learning_rate(new, 0)
    for name in ("blocks.0.mlp.up.weight", "embed.token"):
        gradient = after[f"first_moment/{name}"] / (1 - rule.beta1)
        second = rule.beta2 * before[f"second_moment/{name}"] + (1 - rule.beta2) * gradient**2
        step = (1 - rule.beta1) * gradient / (1 - rule.beta1 ** (HALF + 1))
        step /= np.sqrt(second / (1 - rule.beta2 ** (HALF + 1))) + rule.eps
        expected = before[f"parameters/{name}"] * (1 - lr * rule.weight_decay) - lr * step
        # float64: 7e-18 was measured. A first moment corrected for being new makes the step of 8e-4 3.4 times as large
        np.testing.assert_allclose(after[f"parameters/{name}"], expected, rtol=0, atol=1e-16)


@pytest.fixture
def imported(made, tmp_path):
    """A run that has weights alone, as one that was converted from another format."""
    config = made()
    place = interchange_of(tmp_path / "imported", "update-00000000")
    save_interchange(place, config, {"parameters": initial_parameters(config.model, 3)}, Progress(), "import")
    (tmp_path / "imported" / "config.json").write_text(config.to_json())
    return tmp_path / "imported"


def words(corpus, start, *more: str) -> list[str]:
    free = [word for word in arguments(corpus) if not word.startswith("--model.")]
    return [*free, f"--from={start}", "--model.context=32", *more]


def test_a_start_without_moments_or_rate_is_refused(made, imported, corpus):
    new = made().changed(train__start=str(imported), train__start_moments="keep")
    with refused("runs/start-without-moments", "keep", "fresh"):
        moments.moments_of(open_start(new), new)
    with refused("runs/start-without-rate", "schedule.start_lr"):
        completed(parse(words(corpus, imported, "--schedule.kind=rewarm"), "run", ""))
    command = completed(parse(words(corpus, imported, "--schedule.kind=rewarm", "--schedule.start_lr=0"), "run", ""))
    assert command.config.schedule.start_lr == 0
    with refused("config/moments-without-start", "--from"):
        made(train__start_moments="warm")


def test_moments_of_another_optimizer_are_refused(made, tmp_path):
    short = made(train__updates=1)
    trained(TorchTrainer(short), short, tmp_path / "first")
    new = short.changed(train__start=str(tmp_path / "first"), train__start_moments="keep", optimizer__name="muon")
    with refused("runs/moments-of-another-optimizer", "adamw", "muon"):
        moments.moments_of(open_start(new), new)


def test_rewarm_rises_from_the_last_rate_of_its_start(made, corpus, tmp_path):
    linear = {"schedule__kind": "linear", "schedule__min_lr": 1e-4, "optimizer__lr": 1e-3, "train__updates": 2}
    config = made(**linear)
    trained(TorchTrainer(config), config, tmp_path / "first")
    last = learning_rate(config, 1)
    assert last == pytest.approx(5.5e-4)
    begin = ("--schedule.kind=rewarm", "--schedule.warmup_updates=3")
    command = completed(parse(words(corpus, tmp_path / "first", *begin, "--optimizer.lr=2e-3"), "run", ""))
    assert command.config.schedule.start_lr == last
    assert learning_rate(command.config, 0) == pytest.approx(last + (2e-3 - last) / 4)
    with refused("runs/start-rate-above-lr", "0.00055", "0.0005"):
        completed(parse(words(corpus, tmp_path / "first", *begin, "--optimizer.lr=5e-4"), "run", ""))


def test_from_is_short_for_a_field(corpus, imported, tmp_path):
    assert parse(words(corpus, "runs/x"), "run", "").config.train.start == "runs/x"
    for more in ("--from=runs/y", "--train.start=runs/y"):
        with refused("training/from-empty-or-twice", "--from"):
            parse(words(corpus, "runs/x", more), "run", "")
    with refused("training/from-empty-or-twice", "empty"):
        parse(["--from="], "run", "")
    with refused("training/from-with-resume", "--resume"):
        parse(["--from=a", "--resume=b"], "run", "")
    with refused("runs/config-of-another-shape", "model.heads is 3", "4 in"):
        completed(parse(["tiny", f"--from={imported}"], "run", ""))


def test_a_run_that_never_saved_begins_with_its_start_again(made, imported, corpus, tmp_path):
    """Not with fresh weights, as a resume of a run that has its own needs none of the start's."""
    new = completed(parse(words(corpus, imported, "--data.tokenizer=bytes", f"--output={tmp_path / 'new'}"), "run", ""))
    ready = resolve(new, World(), "torch")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(ready.config.to_json())
    again = resolve(completed(parse([f"--resume={tmp_path / 'new'}"], "run", "")), World(), "torch")
    assert again.start is not None
    assert again.start.fingerprint == ready.start.fingerprint


@pytest.mark.whole
def test_whole_runs_begin_from_either_stack_on_any_number_of_devices(corpus, tmp_path):
    wide = ("--precision.compute=float64", "--model.residual_dropout=0")
    run("torch", *arguments(corpus, *wide, f"--output={tmp_path / 'first'}"))
    free = [word for word in words(corpus, tmp_path / "first") if "residual_dropout" not in word]
    new = [*free, *wide, "--train.start_moments=keep", "--schedule.kind=rewarm"]
    said = run("torch", *new, f"--output={tmp_path / 'torch'}")
    assert "both kept, of 12 updates" in said
    run("jax", *new, f"--output={tmp_path / 'jax'}")
    sharded = ("--parallel.data=2", "--parallel.zero=2", "--parallel.zero_engine=fsdp2", "--spawn")
    run("torch", *new, *sharded, f"--output={tmp_path / 'zero'}")
    run("jax", *new, "--parallel.fsdp=2", "--spawn", f"--output={tmp_path / 'mesh'}")
    wanted = state(tmp_path / "torch")
    for other in ("jax", "zero", "mesh"):
        # float64, 12 updates more: 1.5e-15 was measured; a first moment that is lost makes 0.5
        assert furthest(state(tmp_path / other), wanted) < CAP, other
        assert [row["batch_hash"] for row in rows(tmp_path / other) if "batch_hash" in row] == [
            row["batch_hash"] for row in rows(tmp_path / "torch") if "batch_hash" in row
        ]
    manifest = json.loads(next((tmp_path / "zero" / "interchange").glob("*/manifest.json")).read_text())
    origin = manifest["progress"]["origin"]
    assert (origin["update"], origin["moments"], manifest["progress"]["applied"]) == (12, "keep", 24)
    first = load_interchange(next((tmp_path / "first" / "interchange").glob("update-*[0-9]")))
    assert origin["fingerprint"] == moments.StartTensors(first, 32).fingerprint

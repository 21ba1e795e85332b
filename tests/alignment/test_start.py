"""`train.start`: what a new run takes from another, what is refused, and presets in its place."""

from __future__ import annotations

import os

import numpy as np
import pytest

import coretrain.training.presets as presets
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters, parameter_table
from coretrain.journal.segments import Segment, begin_segment
from coretrain.processes.world import World
from coretrain.runs.start import keep_start, open_start
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.training.command_line import parse
from coretrain.training.feeds import check_reference
from coretrain.training.resolve import completed, resolve
from tests.support.refusal import refused
from tests.support.whole_runs import arguments

ALONE = World()


@pytest.fixture
def argv(corpus, tmp_path):
    """A function: the words of a small run with its folder below `tmp_path`, `more` on top."""

    def words(*more: str) -> list[str]:
        short = ("--train.updates=2", "--schedule.warmup_updates=1", f"--output={tmp_path / 'run'}")
        return arguments(corpus, *short, *more)

    return words


def commanded(words):
    return parse(words, "run", "")


@pytest.fixture
def made(argv, tmp_path):
    """A function: a run that ended after `update` updates, with the weights of a seed."""

    def make(name: str = "first", update: int = 5, *more: str, seed: int = 3):
        folder = tmp_path / name
        config = commanded(argv(*more)).config.with_vocab(257)
        place = interchange_of(folder, f"update-{update:08d}")
        weights = initial_parameters(config.model, seed)
        save_interchange(place, config, {"parameters": weights}, Progress(update=update), "torch")
        bytes_tokenizer().save(folder)
        (folder / "config.json").write_text(config.to_json())
        return folder

    return make


def beginning(argv, start, *more: str) -> list[str]:
    """The words of a run that begins with another's weights and says nothing of its model."""
    free = [word for word in argv() if not word.startswith(("--model.", "--data.tokenizer"))]
    return [*free, f"--train.start={start}", "--model.context=16", *more]


def test_a_run_takes_weights_model_and_tokenizer_of_its_start(argv, made):
    """The very checkpoint is written down, which stays what it is where the start's run goes on."""
    start = made()
    ready = resolve(completed(commanded(beginning(argv, start))), ALONE, "torch")
    assert (ready.config.model.layers, ready.config.model.width, ready.config.model.context) == (2, 32, 16)
    assert ready.config.data.tokenizer == str(start / "tokenizer.tiktoken")
    assert ready.config.train.start == str(start / "interchange" / "update-00000005")
    expected = initial_parameters(ready.config.model, 3)
    assert ready.start is not None
    assert {name: np.array_equal(ready.start[name], expected[name]) for name in expected} == dict.fromkeys(
        (row.name for row in parameter_table(ready.config.model)), True
    )


def test_a_start_is_kept_where_its_run_goes_on(argv, made):
    start = made()
    ready = resolve(completed(commanded(beginning(argv, start))), ALONE, "torch")
    assert keep_start(ready.start) == ""
    kept = CheckpointFolder(start / "interchange")
    assert kept.pins() == {"update-00000005": ready.start.fingerprint}
    made("first", 9, seed=4)
    kept.prune(keep=1)
    again = open_start(ready.config)
    assert again.fingerprint == ready.start.fingerprint


def test_learned_positions_are_cut_to_the_context(argv, made):
    start = made("learned", 5, "--model.position=learned")
    ready = resolve(completed(commanded(beginning(argv, start))), ALONE, "torch")
    assert ready.start["embed.position"].shape == (16, 32)
    with refused("runs/context-exceeds-start", "model.context = 64", "32"):
        completed(commanded(beginning(argv, start, "--model.context=64")))


def test_what_contradicts_the_start_is_refused(argv, made):
    start = made()
    with refused("runs/model-field-set-by-start", "model.layers = 3", str(start), "2"):
        completed(commanded(beginning(argv, start, "--model.layers=3")))
    with refused("runs/start-not-found", "nowhere"):
        completed(commanded(beginning(argv, "nowhere")))
    with refused("runs/not-a-run"):
        completed(commanded(beginning(argv, start / "interchange")))
    scored = made("scored", 5, "--model.score_head=true", "--train.objective=reward", "--data.format=pairs")
    with refused("runs/start-has-score-head", str(scored)):
        completed(commanded(beginning(argv, scored)))
    adapted = made("adapted")
    config = commanded(argv()).config.changed(adapter__kind="lora", adapter__base=str(start)).with_vocab(257)
    (adapted / "config.json").write_text(config.to_json())
    (adapted / "interchange").rename(adapted / "elsewhere")
    with refused("runs/start-is-adapter", str(adapted)):
        completed(commanded(beginning(argv, adapted)))


def test_another_tokenizer_is_refused(argv, made):
    start = made()
    command = completed(commanded(beginning(argv, start, "--data.tokenizer=trained", "--data.tokenizer_vocab=257")))
    with refused("runs/tokenizer-not-start", "train.start", str(start)):
        resolve(command, ALONE, "torch")


def test_a_start_that_has_not_ended_has_no_weights_yet(argv, made):
    start = made()
    (start / "interchange").rename(start / "elsewhere")
    with refused("checkpoint/no-interchange-in-run"):
        resolve(completed(commanded(beginning(argv, start))), ALONE, "torch")


def test_a_run_goes_on_beside_the_reference_that_it_had():
    check_reference({"reference": "abc"}, {"reference": "abc", "kl_coefficient": 1.0})
    check_reference({"reference": "abc"}, {})  # a run that is not restored
    with refused("training/reference-changed", "abc", "xyz"):
        check_reference({"reference": "xyz"}, {"reference": "abc"})


@pytest.fixture
def preset(argv, made, tmp_path, monkeypatch):
    """A preset `small` of 2 updates, runs/ in the working folder, and a function that makes a run of it."""
    monkeypatch.chdir(tmp_path)
    config = commanded(argv()).config
    monkeypatch.setattr(presets, "load_config", lambda name: {"small": config}[name])

    def finish(name: str, update: int = 2, stack: str = "torch", when: int = 100, *more: str):
        folder = made(f"runs/{name}", update, *more)
        begin_segment(folder, Segment(0, stack, "cpu"))
        os.utime(folder / "config.json", (when, when))
        return folder

    return finish


def test_the_newest_finished_run_of_a_preset_is_taken(argv, preset, capsys):
    preset("old", when=100)
    newest = preset("new", when=300)
    preset("unfinished", update=1, when=400)
    preset("of-jax", stack="jax", when=500)
    preset("of-another-rate", 2, "torch", 600, "--optimizer.lr=1e-4")
    command = presets.with_presets(commanded(argv("--train.start=preset:small")), "torch", lambda name: 1 / 0)
    assert command.config.train.start == f"runs/{newest.name}"
    assert "preset:small" in capsys.readouterr().out


def test_a_preset_without_a_finished_run_is_trained_first(argv, preset, capsys):
    asked = []

    def train(name: str) -> int:
        asked.append(name)
        preset("fresh")
        return 0

    command = presets.with_presets(commanded(argv("--train.start=preset:small")), "torch", train)
    assert (command.config.train.start, asked) == ("runs/fresh", ["small"])
    assert "trained first" in capsys.readouterr().out


def test_a_preset_whose_training_did_not_end_is_told(argv, preset):
    for code in (0, 1):
        with refused("training/preset-not-finished", "small"):
            presets.with_presets(commanded(argv("--train.start=preset:small")), "torch", lambda name, code=code: code)


def test_one_process_of_several_trains_no_preset(argv, preset, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with refused("training/preset-not-trained", "small"):
        presets.with_presets(commanded(argv("--train.start=preset:small")), "torch", lambda name: 0)

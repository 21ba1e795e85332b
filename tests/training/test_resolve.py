"""From a command line to a run that is ready: what is filled in, on one process, and that nothing changes it later."""

from __future__ import annotations

import importlib

import pytest

import coretrain.training.runner as runner
from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.contract.parameters import initial_parameters
from coretrain.processes.world import World
from coretrain.runs.folder import open_run
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.training.command_line import parse
from coretrain.training.resolve import completed, resolve, run_folder
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
def base(argv, tmp_path, corpus):
    """A run at its start, as others are adapted: config, weights, tokenizer."""
    folder = tmp_path / "base"
    config = commanded(argv()).config.with_vocab(257)
    weights = initial_parameters(config.model, 3)
    save_interchange(interchange_of(folder, "update-00000000"), config, {"parameters": weights}, Progress(), "import")
    bytes_tokenizer().save(folder)
    (folder / "config.json").write_text(config.to_json())
    return folder


def adapting(argv, base, *more: str) -> list[str]:
    free = [word for word in argv() if not word.startswith(("--model.", "--data.tokenizer"))]
    return [*free, "--adapter.kind=lora", "--adapter.rank=2", f"--adapter.base={base}", *more]


def test_a_run_on_one_process(argv, tmp_path):
    command = completed(commanded(argv("--parallel.host=0", "--parallel.hosts=1")))
    assert command.config.model.vocab is None
    assert command.config.parallel.host == 0
    ready = resolve(command, ALONE, "torch")
    # the vocabulary is the tokenizer's, which host this is is no part of a run, and all else is as it was asked for
    assert ready.config == command.config.changed(model__vocab=257, parallel__host=None)
    assert ready.data.tokenizer.vocab == 257
    assert ready.base is None
    assert (ready.folder, ready.resumed) == (tmp_path / "run", False)
    assert not ready.folder.exists(), "nothing is written yet"


def test_a_command_without_an_adapter_is_complete(argv):
    command = commanded(argv())
    assert completed(command) is command


def test_a_tokenizer_that_was_typed_is_the_one_that_is_taken(argv, base):
    """Whether it fits the base is looked at later; without a word it is the base's own."""
    typed = completed(commanded(adapting(argv, base, "--data.tokenizer=gpt2")))
    assert typed.config.data.tokenizer == "gpt2"
    own = completed(commanded(adapting(argv, base)))
    assert own.config.data.tokenizer == str(base / "tokenizer.tiktoken")


def test_an_adapters_run(argv, base, corpus):
    command = commanded(adapting(argv, base))
    assert command.config.model.layers != 2
    command = completed(command)
    of_base = open_run(base)
    assert command.config.model == of_base.model
    assert command.config.data.tokenizer.startswith(str(base))
    assert not command.config.adapter.fingerprint
    ready = resolve(command, ALONE, "torch")
    assert ready.config == command.config.changed(adapter__fingerprint=ready.config.adapter.fingerprint)
    assert len(ready.config.adapter.fingerprint) >= 16
    assert base in ready.base.folder.parents
    assert {name: ready.base[name].shape for name in ready.base} == {
        name: value.shape for name, value in initial_parameters(of_base.model, 3).items()
    }


def test_a_resumed_adapters_run_is_left_as_it_is(argv, base, tmp_path):
    """Its own folder says what it took from its base; a new place of it is all that may be said anew."""
    ready = resolve(completed(commanded(adapting(argv, base))), ALONE, "torch")
    ready.folder.mkdir(parents=True)
    runner.begin_folder(ready.folder, ready.config, ready.data)
    command = commanded(["--resume", str(ready.folder)])
    assert completed(command) is command
    again = resolve(command, ALONE, "torch")
    assert again.config == ready.config
    assert (again.folder, again.resumed) == (ready.folder, True)
    moved = base.rename(tmp_path / "moved")
    again = resolve(completed(commanded(["--resume", str(ready.folder), f"--adapter.base={moved}"])), ALONE, "torch")
    assert again.config == ready.config.changed(adapter__base=str(moved))
    assert moved in again.base.folder.parents


def test_a_base_and_no_adapter_or_an_adapter_and_no_base_is_refused(argv, base):
    with refused("training/base-without-adapter"):
        completed(commanded(argv(f"--adapter.base={base}")))
    with refused("training/adapter-without-base", "lora"):
        completed(commanded(argv("--adapter.kind=lora")))
    with refused("training/field-set-by-base", "model.layers"):
        completed(commanded(adapting(argv, base, "--model.layers=3")))


class Compared(World):
    """A process that is stopped where it would compare what it was started with, and says with what."""

    def assert_same(self, text, what):
        raise InterruptedError(text)


def told(command):
    with pytest.raises(InterruptedError) as found:
        resolve(command, Compared(), "torch")
    return str(found.value)


def test_processes_compare_what_they_have_in_common(argv):
    """Each host is told by hand which one it is: that alone may differ."""
    place = ("--parallel.hosts=2", "--parallel.coordinator=127.0.0.1:4321")
    first, second, other = (
        told(completed(commanded(argv(*place, f"--parallel.host={rank}", f"--train.seed={seed}"))))
        for rank, seed in ((0, 1), (1, 1), (1, 2))
    )
    assert first == second != other


def test_the_folder_of_a_run(argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_folder(commanded(argv())) == tmp_path / "run"
    free = commanded([word for word in argv() if not word.startswith("--output")])
    first = run_folder(free)
    assert first.parent.name == "runs"
    assert first.name.startswith("tiny-")
    first.mkdir(parents=True)
    assert run_folder(free) != first
    (tmp_path / "run").mkdir()
    assert run_folder(commanded(argv())) == tmp_path / "run", "an empty one may be there"
    (tmp_path / "run" / "config.json").write_text("{}")
    with refused("training/output-holds-run"):
        run_folder(commanded(argv()))
    (tmp_path / "file").write_text("")
    with refused("training/output-is-file"):
        run_folder(commanded([*argv()[:-1], f"--output={tmp_path / 'file'}"]))


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["none", "lora"])
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_nothing_changes_a_config_after_it_is_resolved(stack, kind, argv, base, monkeypatch):
    """The trainer's is the resolved one itself, and so is what the run's folder keeps."""
    ready, made = [], []

    def noting(command, world, name):
        ready.append(resolve(command, world, name))
        return ready[0]

    def make(config, tensors):
        made.append(importlib.import_module(f"{stack}train.parallel.choose").make_trainer(config, tensors))
        return made[0]

    monkeypatch.setattr(runner, "resolve", noting)
    assert runner.run(argv() if kind == "none" else adapting(argv, base), stack, make) == 0
    assert made[0].config is ready[0].config
    assert open_run(ready[0].folder) == ready[0].config
    assert (ready[0].folder / "config.json").read_text() == ready[0].config.to_json()

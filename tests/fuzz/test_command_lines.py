"""Words on command lines, and numbers in the environment, that few expect: taken, or refused in a sentence.

What would train, convert, generate, compile or start a process is stopped where it is reached.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

import jaxtrain.parallel.processes
import torchtrain.parallel.processes
from coretrain.config.load import fields, load_config
from coretrain.config.run import RunConfig
from coretrain.journal.metrics import METRICS
from coretrain.processes.launch import LAUNCHED
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.fuzzing import WORDS, ends_well, fuzzed, mutated, odd_word
from twintrain.command import main

ENDS = (
    *("coretrain.training.runner.resolve", "coretrain.training.spawn.subprocess.Popen"),
    *("coretrain.inference.generate.open_for_generation", "coretrain.inference.generate.open_adapters"),
    *("coretrain.runs.convert.import_run", "coretrain.runs.convert.export_run", "coretrain.runs.adapted.merge_run"),
    *("twintrain.convert.import_run", "twintrain.convert.export_run", "twintrain.convert.merge_run"),
    *("torchtrain.onnx_export.export_onnx", "coretrain.data.open.open_data", "twintrain.prepare.open_data"),
    *("parity.localize.command.localize_config", "parity.localize.command.localize_runs", "twintrain.doctor.show"),
    *("twintrain.plan.compile_for", "coretrain.journal.page.compare_plot", "twintrain.twins.compare_plot"),
    *("coretrain.planning.show.picture", "twintrain.plan.picture", "twintrain.docstrings.rows", "pytest.main"),
    "twintrain.bench.rounds.measured",
    *("torchtrain.parallel.processes.meet", "torchtrain.parallel.processes.dist.init_process_group"),
    *("jaxtrain.parallel.processes.meet", "jaxtrain.parallel.processes.jax.distributed.initialize"),
)
"""Where a command line has been understood."""


class Reached(Exception):  # no error: an end
    """What was asked for would begin now."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run's folder as far as a command line looks at it, in a folder that is the current one."""
    folder = tmp_path_factory.mktemp("lines") / "run"
    bytes_tokenizer().save(folder)
    (folder / "config.json").write_text(load_config("tiny").with_vocab(257).to_json())
    said = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(said)
    (folder / "model.py").touch()
    row = {"update": 0, "loss": 1.0, "grad_norm": 1.0, "lr": 1.0, "tokens": 1, "batch_hash": "a", "seconds": 1.0}
    (folder / METRICS).write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def stopped(run, monkeypatch) -> Callable[[Callable[[], object]], Callable[[], None]]:
    """A function: what calls another, and ends well where that reaches one of `ENDS`."""

    def reached(*_: object, **__: object) -> None:
        raise Reached

    for name in ENDS:
        module, _, leaf = name.rpartition(".")
        owner: Any = None
        for part in module.split("."):
            owner = getattr(owner, part, None) or importlib.import_module(f"{owner.__name__}.{part}" if owner else part)
        monkeypatch.setattr(owner, leaf, reached, raising=False)
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(run.parent)

    def stopping(do: Callable[[], object]) -> Callable[[], None]:
        def called() -> None:
            with contextlib.suppress(Reached):
                do()

        return called

    return stopping


def some_fields(random: Random) -> list[str]:
    """Fields of a config, most with a value that they could have."""
    config, words = load_config("tiny"), []
    for key in random.sample(sorted(fields()), random.choice((0, 1, 1, 2, 5))):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        text = odd_word(random) if random.random() < 0.6 else str(value)
        words += random.choice(([f"--{key}", text], [f"--{key}={text}"]))
    return words


def lines(run: Path) -> dict[str, list[str]]:
    """For each verb, words that it understands."""
    known = {
        "train": "tiny --train.updates 200 --output new --stack torch --spawn --model.width 96",
        "train jax": "tiny --schedule.horizon 200 --stack jax --parallel.host 0 --train.seed 7",
        "train again": f"--resume {run} --train.updates 900",
        "generate": f"{run} a --tokens 3 --temperature 0.5 --top-k 5 --top-p 0.9 --seed 1",
        "chat": f"{run} a --tokens 3 --adapter {run} --stack jax",
        "prepare": "tiny --data.source x --data.max_documents 9",
        "convert": f"{run} new --to hf --quantize f16 --merge",
        "convert in": "x.gguf new tiny --data.tokenizer bytes",
        "convert merge": f"{run} new --adapter.base {run}",
        "plan": "tiny --on h100x8 --price 2.5 --tokens 1e9 --served 1e10 --plot x.png --json",
        "plan tpu": "gpt2-124m --on v5e:4x4 --no-compile --train.batch_size 64",
        "doctor": "--no-peaks",
        "bench": "--only torch f32 --layers 1 --width 64 --rounds 2 --json x.json",
        "bench generation": f"--what generation --nanogpt {run} --markdown x.md",
        "twins": f"{run} {run} x.png",
        "localize": "tiny --layers 1 --width 32 --output new --model.heads 4",
        "localize runs": f"{run} {run} --output new",
        "parity": "--device cpu --config tiny --layers 1 --width 32 -k x",
        "docstrings": "new.jsonl --limit 5",
        "completion": "bash",
    }
    return {name: words.split() for name, words in known.items()}


@fuzzed(25)
def test_verbs(run, stopped, random):
    known = lines(run)
    name = random.choice(sorted(known))
    verb, words = name.split(" ")[0], known[name]
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(words))
        words = random.choice(
            (
                [*words[:at], odd_word(random), *words[at + 1 :]],
                [*words[:at], odd_word(random), *words[at + 1 :]],
                [*words[:at], *words[at + 1 :]] or ["x"],
                [*words, *some_fields(random)],
                [str(word) for word in mutated(random, words, 1)] or ["x"],
            )
        )
    words = [word.replace("\0", "") for word in words if not word.startswith("/dev")]
    words += ["--no-compile"] * (verb == "plan")
    ends_well(f"twintrain {verb}", stopped(lambda: main([verb, *words])))


@fuzzed(10)
def test_fields(run, stopped, random):
    """Of the two trainers, in the process that trains and in those that `--spawn` starts."""
    stack = random.choice(("torch", "jax"))
    module = importlib.import_module(f"{stack}train.run")
    words = [*some_fields(random), *some_fields(random), *random.choice(([], [], ["--spawn"], ["--resume", str(run)]))]
    ends_well(f"{stack}train.run", stopped(lambda: module.main([word.replace("\0", "") for word in words])))


@fuzzed(5)
def test_what_launchers_tell(stopped, random):
    facts = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name in random.sample(sorted(facts), random.choice((1, 2))):
        facts[name] = random.choice((odd_word(random), random.choice(WORDS), "3", "-1", "65536"))
    if facts["LOCAL_RANK"].isdecimal():
        facts["LOCAL_RANK"] = "0"  # the others leave it to the first to speak
    facts = {name: text for name, text in facts.items() if random.random() < 0.9}
    config = RunConfig().changed(parallel__data=2).with_vocab(300)
    with pytest.MonkeyPatch.context() as patch:
        for name, text in facts.items():
            patch.setenv(name, text.encode(errors="replace").decode())  # no environment holds half a character
        for join in (torchtrain.parallel.processes.join, jaxtrain.parallel.processes.join):
            ends_well("environment", stopped(lambda join=join: join(config)))


def test_words_that_are_understood_reach_their_ends(run, stopped):
    """Or no odd word would be tried beyond the first that is refused."""
    for name, words in lines(run).items():
        ends = []

        def do(name=name, words=words, ends=ends) -> None:
            try:
                main([name.split(" ")[0], *words])
            except Reached:
                ends.append("reached")
                raise

        ends_well(f"twintrain {name}, as it should be", stopped(do))
        assert ends or name in ("plan tpu", "completion"), name

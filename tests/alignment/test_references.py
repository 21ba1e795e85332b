"""The models beside the one that trains: which weights a reference has, what a reward model scores, what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.contract.parameters import initial_parameters
from coretrain.runs.base import Base, BaseTensors
from coretrain.runs.start import open_start
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.training.references import RunScores, open_reference
from tests.support.refusal import refused

SMALL = {
    "model.layers": 1, "model.width": 16, "model.heads": 2, "model.context": 12, "model.vocab": 257,
    "data.format": "pairs", "train.objective": "dpo", "train.batch_size": 4,
}  # fmt: skip
DATA = SimpleNamespace(tokenizer=bytes_tokenizer())


def config_of(**more: object):
    given = SMALL | {key.replace("__", "."): value for key, value in more.items()}
    return load_config("tiny", [(key, str(value)) for key, value in given.items()])


class Made:
    """A stack that keeps what it was made of."""

    def __init__(self, config, tensors) -> None:
        self.config, self.tensors = config, tensors

    def values(self, batch):
        """At each place its token's id, and a hundredth of its place."""
        return batch.tokens + np.arange(batch.tokens.shape[1]) / 100


@pytest.fixture
def ended(tmp_path):
    """A function: the folder of a run that has ended."""

    def make(name: str, seed: int = 3, **more: object):
        folder, config = tmp_path / name, config_of(**more)
        weights = {"parameters": initial_parameters(config.model, seed)}
        save_interchange(interchange_of(folder, "update-00000005"), config, weights, Progress(update=5), "torch")
        bytes_tokenizer().save(folder)
        (folder / "config.json").write_text(config.to_json())
        return folder

    return make


def same(tensors, model, seed: int) -> bool:
    return all(np.array_equal(tensors[name], value) for name, value in initial_parameters(model, seed).items())


def test_the_reference_is_the_runs_own_start(ended):
    config = config_of(train__start=ended("start"))
    start = open_start(config)
    found = open_reference(config, DATA, Made, None, start)
    assert same(found.stack.tensors, config.model, 3)
    assert found.fingerprint == start.fingerprint
    fresh = open_reference(config_of(), DATA, Made, None, None)
    assert (fresh.stack.tensors, fresh.fingerprint) == (None, "seed 1337")


def test_with_an_adapter_it_is_the_adapters_start_on_its_base(ended):
    """The stack is made of the base's config and tensors, to which it adds the adapter as it begins."""
    config, base = Base(ended("base")).under(config_of(adapter__kind="lora", adapter__base=ended("base")))
    found = open_reference(config, DATA, Made, BaseTensors(base, 12), None)
    assert found.stack.config.adapter.kind == "lora"
    assert same(found.stack.tensors, config.model, 3)
    assert found.fingerprint == config.adapter.fingerprint != ""


def test_another_run_may_be_named_and_some_objectives_have_none(ended):
    config = config_of(train__start=ended("start"), align__reference=ended("other", seed=4))
    found = open_reference(config, DATA, Made, None, open_start(config))
    assert same(found.stack.tensors, config.model, 4)
    for objective in ("simpo", "orpo"):
        assert open_reference(config_of(train__objective=objective), DATA, 1 / 1, None, None) is None


def test_a_reference_of_another_kind_is_refused(ended):
    other = ended("larger", model__vocab=300)
    with refused("training/reference-of-another-vocabulary", str(other), "300", "257"):
        open_reference(config_of(align__reference=other), DATA, Made, None, None)
    short = ended("short", model__context=8)
    with refused("training/scorer-context-too-short", "align.reference", "8", "12"):
        open_reference(config_of(align__reference=short), DATA, Made, None, None)
    with refused("runs/start-not-found", "align.reference", "nowhere"):
        open_reference(config_of(align__reference="nowhere"), DATA, Made, None, None)
    stranger = SimpleNamespace(tokenizer=SimpleNamespace(fingerprint="another"))
    with refused("runs/tokenizer-not-start", "align.reference"):
        open_reference(config_of(align__reference=ended("other")), stranger, Made, None, None)


def test_a_reward_model_scores_the_last_token_of_each_answer(ended):
    """Whatever its id is, and however long the rows beside it are."""
    place = str(ended("scores", train__objective="reward", model__score_head="true"))
    runs = RunScores(config_of(), DATA, Made)
    score = runs.open(place)
    runs.prepare([[5, 6, 7], [8, 0], [1, 2, 3, 256, 256]])
    assert score([]).tolist() == [7.02, 0.01, 256.04]
    runs.prepare([[9]])
    assert score([]).tolist() == [9.0]


def test_a_run_without_a_score_head_is_no_reward_model(ended):
    place = str(ended("policy"))
    with refused("training/reward-run-without-score-head", place):
        RunScores(config_of(), DATA, Made).open(place)

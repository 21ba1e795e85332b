"""The score head: in the table and both models, trained, saved, resumed in the other stack, taken over, written out."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import jaxtrain.parallel.trainer
import torchtrain.parallel.trainer
from coretrain.adapters.merge import merged, other_field
from coretrain.adapters.targets import trainable_parameters, with_adapter
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import SCORE, initial_parameters, parameter_table
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import Batch
from coretrain.formats.huggingface.weights import export_huggingface, import_huggingface
from coretrain.planning.flops import matmul_parameters, parameter_count
from coretrain.planning.memory import footprint, sizes
from coretrain.processes.layout import Layout
from coretrain.runs.base import Base
from coretrain.runs.score_head import check_form_has_scores, with_own_head, without_values
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.models import MODELS, perturbed
from tests.support.refusal import refused
from torchtrain.trainer import Trainer as TorchTrainer

STACKS = {"torch": TorchTrainer, "jax": JaxTrainer}
SHARING = {"torch": torchtrain.parallel.trainer.ParallelTrainer, "jax": jaxtrain.parallel.trainer.ParallelTrainer}


def scored(config: RunConfig, objective: str = "reward", **more: object) -> RunConfig:
    """The same with a score head, as a reward run has it."""
    return config.changed(model__score_head=True, train__objective=objective, data__format="pairs", **more)


@pytest.fixture
def config(small_config):
    return scored(small_config(precision__compute="float64"))


def batch(config: RunConfig) -> Batch:
    tokens = np.random.default_rng(2).integers(0, config.model.vocabulary, (4, config.model.context), dtype=np.int32)
    return Batch(tokens, tokens)


def test_the_table_ends_with_it(config):
    row = parameter_table(config.model)[-1]
    assert (row.name, row.shape, row.init, row.decay, row.jax_path) == (SCORE, (1, 32), "normal", True, SCORE)
    assert row.std == 1 / math.sqrt(33)
    plain = config.changed(model__score_head=False).model
    assert parameter_table(config.model)[:-1] == parameter_table(plain)
    values = [initial_parameters(config.model, seed)[SCORE] for seed in range(200)]
    assert np.std(values) == pytest.approx(row.std, rel=0.03)  # of 6,400 draws: 0.9%


def test_planner_counts_it(config):
    plain = config.changed(model__score_head=False)
    assert parameter_count(config.model) - parameter_count(plain.model) == 32
    assert matmul_parameters(config.model) - matmul_parameters(plain.model) == 32
    assert sizes(config, Layout()).total - sizes(plain, Layout()).total == 32
    assert footprint(config).total > footprint(plain).total


@pytest.mark.parametrize("stack", STACKS)
def test_a_model_without_one_has_no_values(stack, small_config):
    made = STACKS[stack](small_config())
    with refused("contract/score-head-missing"):
        made.values(batch(made.config))


@pytest.mark.parametrize("stack", STACKS)
def test_a_trainer_that_could_share_the_run_gives_the_same(stack, config):
    """Alone: values, answers and their replay; what is padded for others is cut off again."""
    ours, shared = STACKS[stack](config), SHARING[stack](config)
    five = Batch(*(np.concatenate([rows, rows[:1]]) for rows in (batch(config).tokens, batch(config).labels)))
    found, wanted = shared.values(five), ours.values(five)
    assert found.shape == wanted.shape == (5, config.model.context)
    assert np.abs(found - wanted).max() < 1e-13  # floor 2e-15
    prompts, drawn = [[1, 2, 3], [4], [1, 2, 3]], Sampling(1.0, 0, 1.0, 3)
    rows = [made.sample(prompts, 6, drawn, (5,)) for made in (ours, shared)]
    assert [row.ids for row in rows[0]] == [row.ids for row in rows[1]]
    again = shared.replay(prompts, 6, 1.0, [row.ids for row in rows[1]])
    assert again == [row.logprobs for row in rows[1]]


@pytest.mark.parametrize("stack", STACKS)
def test_values_are_the_head_on_what_the_logits_are_made_of(stack, config):
    """By the model's own logits: with a head of the embedding's row 5, the scores are the logits of id 5."""
    weights = initial_parameters(config.model, 3)
    weights[SCORE] = weights["embed.token"][5:6]
    made = STACKS[stack](config, weights)
    b = batch(config)
    found = made.values(b)
    tokens = torch.from_numpy(b.tokens).long()
    with torch.no_grad():
        model = TorchTrainer(config, weights).model
        wanted = model.logits(model(tokens))[..., 5].numpy()
    # the same sums in another order: 1e-16 of numbers near 0.1; a head before the final norm is off by 1
    assert np.abs(found - wanted).max() < 1e-14
    assert found.shape == b.tokens.shape


@pytest.mark.parametrize("stack", STACKS)
def test_an_adapter_of_the_head_changes_no_score_by_itself(stack, config):
    """Hidden states are then wider for the logits' sake."""
    untied = config.changed(model__tied=False)
    weights = initial_parameters(untied.model, 3)
    adapted = untied.changed(adapter__kind="lora", adapter__targets=("head.weight",), adapter__rank=2)
    plain, made = STACKS[stack](untied, weights), STACKS[stack](adapted, weights)
    assert np.abs(made.values(batch(config)) - plain.values(batch(config))).max() < 1e-14  # floor 0


@pytest.mark.parametrize("start", STACKS)
def test_a_state_goes_to_the_other_stack_and_back(start, config, tmp_path):
    """Parameters and moments, the score head's among them, by native and by interchange checkpoints."""
    other = STACKS["jax" if start == "torch" else "torch"](config)
    made = STACKS[start](config)
    groups = {name: dict(group) for name, group in made.export().items()}
    assert list(groups["parameters"])[-1] == SCORE
    rng = np.random.default_rng(0)
    state = {g: {n: np.abs(rng.normal(size=t.shape)) for n, t in tensors.items()} for g, tensors in groups.items()}
    made.adopt(state, 3)
    save_interchange(tmp_path / "there", config, made.export(), Progress(), made.name)
    (tmp_path / "native").mkdir()
    made.save(tmp_path / "native").result()
    other.adopt(load_interchange(tmp_path / "there").groups, 3)
    again = STACKS[start](config)
    again.load(tmp_path / "native", 3)
    for stack in (other, again):
        found = stack.export()
        assert found.keys() == state.keys()
        for group, tensors in state.items():
            assert {n: t.shape for n, t in found[group].items()} == {n: t.shape for n, t in tensors.items()}
            assert np.array_equal(found[group][SCORE], tensors[SCORE])


@pytest.mark.parametrize("stack", STACKS)
def test_a_start_that_has_none_gets_a_fresh_one_by_the_table(stack, config):
    """And one that has a head keeps it."""
    weights = initial_parameters(config.model, 5)
    lacking = {name: value for name, value in weights.items() if name != SCORE}
    fresh = initial_parameters(config.model, config.train.seed)[SCORE]
    assert np.array_equal(STACKS[stack](config, lacking).export()["parameters"][SCORE], fresh)
    assert np.array_equal(STACKS[stack](config, weights).export()["parameters"][SCORE], weights[SCORE])
    assert not np.array_equal(weights[SCORE], fresh)


@pytest.mark.parametrize("kind", ["lora", "dora", "bottleneck", "prefix"])
def test_beside_an_adapter_it_trains_whole(kind, config):
    """As PEFT's modules_to_save: it is trained and saved with the adapter, over a base that has none."""
    config = config.changed(adapter__kind=kind)
    names = [row.name for row in trainable_parameters(config)]
    assert names[-1] == SCORE
    assert not {"embed.token", "blocks.0.attention.q.weight"} & set(names)
    base = initial_parameters(config.changed(model__score_head=False).model, 5)
    started = with_adapter(config, base)
    assert set(started) == set(base) | set(names)
    ours, theirs = (make(config, base) for make in STACKS.values())
    assert set(ours.export()["parameters"]) == set(theirs.export()["parameters"]) == set(names)
    assert np.array_equal(ours.export()["parameters"][SCORE], theirs.export()["parameters"][SCORE])
    assert np.abs(ours.values(batch(config)) - theirs.values(batch(config))).max() < 1e-13  # floor 2e-15
    assert ours.model.score.weight.requires_grad


def test_a_merge_takes_the_trained_one(config):
    config = config.changed(adapter__kind="lora")
    base = initial_parameters(config.changed(model__score_head=False).model, 5)
    trained = {row.name: np.full(row.shape, 0.25) for row in trainable_parameters(config)}
    whole = merged(config, base, trained)
    assert list(whole)[-1] == SCORE
    assert (whole[SCORE] == 0.25).all()


def test_a_base_may_lack_it_and_not_have_it_in_vain(config, tmp_path):
    plain = config.changed(model__score_head=False, train__objective="cross_entropy", data__format="text")
    assert other_field(config.model, plain.model) is None
    folders = {"plain": plain, "scored": config}
    for name, one in folders.items():
        groups = {"parameters": initial_parameters(one.model, 1)}
        save_interchange(tmp_path / name / "interchange" / "update-00000000", one, groups, Progress(), "torch")
    lora = config.changed(adapter__kind="lora")
    for name in folders:
        found, _ = Base(tmp_path / name).under(lora)
        assert found.adapter.fingerprint
    with refused("runs/base-has-score-head", str(tmp_path / "scored"), "cross_entropy"):
        Base(tmp_path / "scored").under(plain.changed(adapter__kind="lora"))


@pytest.mark.parametrize("name", ["gpt2", "gpt2 untied", "llama", "llama grouped untied"])
def test_hugging_face_scores_as_we_do(name, tmp_path, small_config):
    """Its sequence classifier, at the last token; and back again every bit."""
    from transformers import AutoModelForSequenceClassification

    model = MODELS[name].model_copy(update={"score_head": True})
    weights = perturbed(model)
    export_huggingface(tmp_path / "hf", model, weights)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    ids = np.random.default_rng(0).integers(0, 300, (1, 17), dtype=np.int32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids).long()).logits.numpy()
    ours = TorchTrainer(scored(small_config(), model=model), weights)
    found = ours.values(Batch(ids, ids))[:, -1:]
    # float32, of scores near 1: 3e-7; a score of another position is off by 0.1
    assert np.abs(found - wanted).max() < 2e-5
    again, tensors = import_huggingface(tmp_path / "hf")
    assert again.score_head
    assert parameter_table(again) == parameter_table(model)
    assert all(np.array_equal(tensors[row.name], weights[row.name]) for row in parameter_table(model))
    told = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert told["architectures"][0].endswith("ForSequenceClassification")


def test_an_import_has_the_head_that_its_config_asks_for(config):
    plain = config.changed(model__score_head=False)
    with_head, without = (initial_parameters(one.model, 8) for one in (config, plain))
    made, said = with_own_head(config, without)
    assert set(made) == set(with_head)
    assert np.array_equal(made[SCORE], initial_parameters(config.model, config.train.seed)[SCORE])
    assert np.array_equal(made["embed.token"], without["embed.token"])
    assert "new" in said[0]
    left, said = with_own_head(plain, with_head)
    assert set(left) == set(without)
    assert "left out" in said[0]
    assert with_own_head(config, with_head) == (with_head, [])
    assert with_own_head(plain, without) == (without, [])


def test_text_needs_no_value_head(config):
    """PPO's is left out of what is written for text; a reward model's is what it is for."""
    weights = initial_parameters(config.model, 8)
    ppo, tensors = without_values(config.changed(train__objective="ppo"), weights)
    assert not ppo.model.score_head
    assert set(tensors) == set(weights) - {SCORE}
    assert without_values(config, weights) == (config, weights)
    check_form_has_scores(ppo, "gguf")
    for form in ("gguf", "peft", "onnx"):
        with refused("runs/form-without-score-head", f"--to {form}"):
            check_form_has_scores(config, form)

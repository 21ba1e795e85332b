"""Low-rank adapters: their table and its faults, merges, checkpoints, the precision of what is frozen."""

from __future__ import annotations

import numpy as np
import pytest
from flax import nnx

import jaxtrain.adapters
import jaxtrain.model
import torchtrain.adapters
import torchtrain.model
from coretrain.adapters.merge import merged
from coretrain.adapters.targets import (
    adapter_parameters,
    adapter_targets,
    initial_adapter,
    trainable_parameters,
    with_adapter,
)
from coretrain.base.errors import UserError
from coretrain.contract.parameters import initial_parameters, parameter_table
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.batches import random_text
from tests.support.refusal import refused
from torchtrain.adapters import Adapters
from torchtrain.trainer import Trainer as TorchTrainer

LORA = {"adapter__kind": "lora", "adapter__rank": 4}


def test_the_table_and_its_start(small_config):
    config = small_config(**LORA, adapter__bias="lora_only", adapter__targets="blocks.*.mlp.down.weight")
    assert [row.name for row in trainable_parameters(config)] == [
        f"blocks.{layer}.mlp.down.{part}" for layer in (0, 1) for part in ("adapter.a", "adapter.b")
    ] + ["blocks.0.mlp.down.bias", "blocks.1.mlp.down.bias"]
    assert [row.shape for row in adapter_parameters(config)[:2]] == [(4, 128), (32, 4)]
    start = initial_adapter(config)
    # U(+-1/sqrt(in)), as kaiming_uniform_(a=sqrt(5)): its largest of 512 draws is within 5% of the bound
    assert 0.95 < np.abs(start["blocks.0.mlp.down.adapter.a"]).max() * 128**0.5 <= 1
    assert not start["blocks.0.mlp.down.adapter.b"].any()
    assert not adapter_targets(small_config())
    assert small_config(**LORA, adapter__alpha=8).adapter.scale == 2
    assert small_config(**LORA, adapter__alpha=8, adapter__rslora="true").adapter.scale == 4


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"adapter__targets": "blocks.*.attention.query.*"}, "matches no matrix of this model: names are as"),
        ({"adapter__targets": "blocks.*.norm1.weight"}, "matches no matrix of this model"),
        ({"adapter__rank": 33}, r"adapter\.rank = 33 is above the smaller side of blocks.0.attention.q.weight"),
        ({"adapter__targets": "embed.token"}, "this tied model's head too"),
        ({"adapter__targets": "blocks.0.*", "adapter__bias": "lora_only"}, "in some layers only"),
    ],
)
def test_faults_of_fields_name_them(small_config, fields, word):
    config = small_config(**(LORA | fields))
    with pytest.raises(UserError, match=word):
        adapter_parameters(config)
    with pytest.raises(UserError, match=word):
        TorchTrainer(config)


def test_no_target_is_refused(small_config):
    with refused("config/no-adapter-targets"):
        small_config(**LORA, adapter__targets="[]")


def test_an_adapter_of_another_model_is_refused(small_config):
    """Also where every shape is the same, and beside weights in other bits than it was trained beside."""
    config = small_config(**LORA)
    bank = Adapters(small_config(), TorchTrainer(small_config()).model)
    for field, value in (("mlp_width", 256), ("heads", 2), ("norm_eps", 1e-6)):
        other = small_config(**LORA, **{f"model__{field}": value})
        with pytest.raises(UserError, match=rf"adapter default is of another model: its model\.{field} = {value}"):
            bank.add(other, initial_adapter(other))
    other = small_config(**LORA, adapter__quantize="int8")
    with refused("adapters/base-quantize-differs", "int8", "none"):
        bank.add(other, initial_adapter(other))
    bank.add(small_config(**LORA, model__context=8), initial_adapter(config))
    assert list(bank.kept) == ["default"]


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_a_merge_in_the_model_is_rounded_once(small_config, make):
    """Bit for bit the merged run's float32 weights; also of layers and matrices that have no adapter."""
    untied = {"model__tied": "false"}
    targets = "blocks.*.attention.q.weight,blocks.1.mlp.up.weight,embed.token"
    config = small_config(**LORA, **untied, adapter__targets=targets)
    rng, weights = np.random.default_rng(0), initial_parameters(config.model, 1)
    adapter = {row.name: rng.standard_normal(row.shape).astype(np.float32) for row in adapter_parameters(config)}
    stack = make(small_config(**untied), weights)
    model = stack.whole_model()
    bank = (torchtrain.adapters if make is TorchTrainer else jaxtrain.adapters).Adapters(small_config(**untied), model)
    bank.add(config, adapter)
    bank.switch("default")
    bank.merge()
    for row in parameter_table(config.model):
        if make is TorchTrainer:
            found = dict(model.named_parameters())[row.name][: row.shape[0]].detach().numpy()
        else:
            found = jaxtrain.model.canonical_tensors(config, nnx.state(model))[row.name]
        assert np.array_equal(found, merged(config, weights, adapter)[row.name]), row.name


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_native_checkpoints_hold_the_adapter_alone(small_config, make, tmp_path):
    config = small_config(**LORA, adapter__dropout=0.1)
    stack, batch = make(config), random_text(config)
    stack.gradients(batch, 0, 1.0)
    stack.apply(1e-2, 1.0, 0)
    (tmp_path / "native").mkdir()
    stack.save(tmp_path / "native").result()
    other = make(config)
    other.load(tmp_path / "native", 1)
    ours, theirs = stack.export(), other.export()
    assert set(ours["parameters"]) == {row.name for row in adapter_parameters(config)} == set(ours["first_moment"])
    for group, tensors in ours.items():
        for name, value in tensors.items():
            assert np.array_equal(value, theirs[group][name]), (group, name)
    assert stack.evaluate(batch) == other.evaluate(batch)


@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_frozen_matrices_are_held_in_the_compute_dtype(make, small_config, monkeypatch):
    """A third of the memory of masters and their copies, and not one bit of another loss or gradient."""
    config = small_config(**LORA, precision__compute="bfloat16", model__tied="false")
    batch = random_text(config)

    def update() -> tuple:
        stack = make(config, initial_parameters(config.model, 1))
        loss = stack.gradients(batch, 0, 1.0)
        stack.apply(1e-2, 1.0, 0)
        model = stack.whole_model()
        weights = model.named_parameters() if make is TorchTrainer else nnx.to_flat_state(nnx.state(model))
        dtypes = {path if isinstance(path, str) else ".".join(path): str(leaf.dtype) for path, leaf in weights}
        return loss, stack.gradients(batch, 1, 1.0), {n: d.removeprefix("torch.") for n, d in dtypes.items()}

    *held, dtypes = update()
    matrices = {name for name in dtypes if name.endswith(("q.weight", "q.kernel", "down.weight", "down.kernel"))}
    assert {dtypes[name] for name in matrices} == {"bfloat16"}
    whole = {name for name in dtypes if ".adapter." in name or "norm" in name or name in ("embed.token", "head.weight")}
    assert {dtypes[name] for name in whole} == {"float32"}
    for module in (torchtrain.model, jaxtrain.model):
        monkeypatch.setattr(module, "frozen_matrices", lambda config: ())
    *cast, dtypes = update()
    assert set(dtypes.values()) == {"float32"}
    assert held == cast


def test_a_rounded_base_takes_no_magnitudes_and_no_merge(small_config):
    """Both are of whole weights, and below an adapter's own run in bfloat16 there are none."""
    half = {"precision__compute": "bfloat16"}
    config = small_config(**LORA, **half)
    stack = TorchTrainer(config, initial_parameters(config.model, 1))
    bank = Adapters(config, stack.model)
    tensors = stack.export()["parameters"]
    bank.add(config, tensors)
    bank.switch("default")
    with pytest.raises(UserError, match=r"added to whole weights, and the base of a run with adapter\.kind = lo"):
        bank.merge()
    dora = small_config(**LORA | {"adapter__kind": "dora", "adapter__name": "other"}, **half)
    whole = with_adapter(dora, initial_parameters(config.model, 1))
    with refused("adapters/norms-need-whole-weights", "other", "held in bfloat16"):
        bank.add(dora, {row.name: np.asarray(whole[row.name]) for row in trainable_parameters(dora)})

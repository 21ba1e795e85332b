"""What must be equal bit for bit: names and shapes, initial weights, rows of tokens, learning rates, masks, decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxtrain.data
import jaxtrain.model
import torchtrain.data
import torchtrain.model
from coretrain.config import load_config
from coretrain.data import batch_hash, global_batch, open_data
from coretrain.parameters import initial_parameters, parameter_table
from coretrain.randomness import dropout_mask
from coretrain.schedule import learning_rate
from coretrain.tables import dropout_keys
from parity.pair import VARIANTS, make_config, make_pair


@pytest.mark.parametrize("variant", ["gpt2-like", "llama-like"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_names_shapes_and_initial_weights(variant, dtype):
    config = make_config(VARIANTS[variant], precision__compute=dtype)
    start = initial_parameters(config.model, config.train.seed)
    pair = make_pair(config, start)
    for state in pair.states():
        assert list(state["parameters"]) == [row.name for row in parameter_table(config.model)]
        for name, value in state["parameters"].items():
            assert value.dtype == dtype
            np.testing.assert_array_equal(value, start[name])
    assert {name for name, _ in pair.torch.model.named_parameters()} == set(start)
    held = {jaxtrain.model.dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(pair.jax.params)}
    assert held == {row.jax_path for row in parameter_table(config.model)}


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_masks(rate):
    config = make_config({"model.residual_dropout": rate})
    keys, rows = dropout_keys(config.model, 7, 11), np.array([5, 0, 9])
    x = np.ones((3, 20, 48), np.float32)
    for site in range(len(keys)):
        mask = dropout_mask(int(keys[site]), rows, 20, 48, rate)
        ours = torchtrain.model.Dropout(torch.from_numpy(keys.view(np.int32)), torch.from_numpy(rows.astype(np.int32)))
        theirs = jaxtrain.model.Dropout(jnp.asarray(keys), jnp.asarray(rows))
        np.testing.assert_array_equal(torchtrain.model.drop(torch.from_numpy(x), rate, ours, site).numpy() > 0, mask)
        np.testing.assert_array_equal(np.asarray(jaxtrain.model.drop(jnp.asarray(x), rate, theirs, site)) > 0, mask)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small corpus and its config."""
    folder = tmp_path_factory.mktemp("parity")
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps over the lazy dog. " * 8)
    places = {"data.source": str(folder), "data.cache": str(folder / "cache"), "data.tokenizer": "bytes"}
    more = {"data.validation_fraction": 0.1, "data.prepare_processes": 1, "model.context": 32, "train.batch_size": 4}
    overrides = [(key, str(value)) for key, value in (places | more | {"train.updates": 150}).items()]
    config = load_config("tiny", overrides)
    return config, open_data(config, lambda _: None)


def test_rows_of_every_update_over_an_epoch_and_across_a_resume(text):
    config, data = text
    assert data.train.windows(32) < 150 * 4, "the run must go beyond an epoch"
    expected = [batch_hash(global_batch(data, config, update)) for update in range(150)]
    for loader in (torchtrain.data.train_batches, jaxtrain.data.train_batches):
        assert [batch_hash(batch) for batch in loader(data, config, 0)] == expected
        assert [batch_hash(batch) for batch in loader(data, config, 73)] == expected[73:]
    assert len(set(expected)) == 150
    swapped = global_batch(data, config, 0)[::-1]
    assert batch_hash(swapped) != expected[0], "the hash must see the order of rows"


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant", "wsd"])
def test_learning_rate_of_every_update(kind):
    config = make_config({"schedule.kind": kind, "schedule.warmup_updates": 7, "train.updates": 60})
    pair = make_pair(config)
    peak, low = config.optimizer.lr, config.schedule.min_lr
    rates = [learning_rate(config, update) for update in range(61)]
    assert rates[0] > 0
    assert max(rates) == rates[7] == peak
    if kind == "cosine":
        independent = optax.warmup_cosine_decay_schedule(peak / 8, peak, 7, 60, low)
        assert max(abs(rates[n] - float(independent(n))) for n in range(61)) < 1e-15
    if kind == "linear":
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=peak)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, low / peak, 53)
        for n in range(7, 61):
            assert abs(rates[n] - decay.get_last_lr()[0]) < 1e-15
            optimizer.step()
            decay.step()
    if kind in ("cosine", "linear", "wsd"):
        assert rates[60] == pytest.approx(low, abs=1e-18)
    # what torch's optimizer really used
    batch = np.zeros((4, 41), np.int32)
    pair.torch.gradients(batch, 0, 1.0)
    pair.torch.apply(rates[30], 1.0, 0)
    assert {group["lr"] for group in pair.torch.optimizer.adam.param_groups} == {rates[30]}


@pytest.mark.parametrize("variant", ["gpt2-like", "llama-like"])
def test_decay_reaches_what_the_table_says_and_nothing_else(variant):
    config = make_config(VARIANTS[variant])
    pair = make_pair(config)
    before = pair.torch.export()["parameters"]
    pair.gradients(np.ones((4, 41), np.int32), 0)
    for parameter in pair.torch.model.parameters():
        parameter.grad.zero_()
    pair.jax.grads = jax.tree.map(jnp.zeros_like, pair.jax.grads)
    for stack in pair.stacks:
        stack.apply(0.1, 1.0, 0)
    for state in pair.states():
        for row in parameter_table(config.model):
            factor = 1 - 0.1 * config.optimizer.weight_decay if row.decay else 1.0
            np.testing.assert_allclose(state["parameters"][row.name], before[row.name] * factor, rtol=1e-14, atol=0)

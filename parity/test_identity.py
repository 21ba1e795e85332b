"""Float64 on the CPU: logits, loss, every gradient, the norm, one clipped update, 50 updates and their moments."""

import functools

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from coretrain.parameters import parameter_table, to_jax_tree
from coretrain.randomness import normal_rows
from parity.compare import (
    ALONE,
    ALONE_32,
    DECAY_32,
    GRADIENTS,
    KEY_BIAS,
    LOGITS,
    LOSS,
    NORM,
    TRAJECTORY,
    UPDATE,
    displacement,
    hold,
    largest_error,
    nrel,
    worst_tensor,
)
from parity.pair import VARIANTS, WEIGHTS, batches, make_config, make_pair

LONG = ("gpt2-like", "llama-like", "llama-like with biases, tied, muon", "gpt2-like without biases, adam")


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    """Both stacks in every variant of the model, compiled once; each test resets them to its weights."""
    return make_pair(make_config(VARIANTS[request.param]))


@pytest.mark.parametrize("state", WEIGHTS)
def test_one_update(pair, state):
    pair.reset(WEIGHTS[state](pair.config))
    batch = batches(pair.config, 1)[0]
    hold(LOGITS, nrel(*pair.logits(batch[:, :-1], 3)), f"{state} weights")
    (ours, our_norm), (theirs, their_norm) = pair.gradients(batch, 3)
    hold(LOSS, abs(ours - theirs), f"{state} weights")
    hold(NORM, abs(our_norm - their_norm) / their_norm, f"{state} weights")
    error, name = worst_tensor(*pair.gradient_tensors(), pair.apart)
    hold(GRADIENTS, error, f"{name}, {state} weights")
    assert our_norm > pair.config.optimizer.clip, "the clip must be at work in this test"
    pair.apply(0, (our_norm, their_norm))
    error, name = largest_error(pair.states(), pair.start, pair.apart)
    hold(UPDATE, error, f"{name}, {state} weights")


# recomputing and unrolling end with the gradients, which every variant compares above
@pytest.mark.parametrize("pair", LONG, indirect=True)
def test_fifty_updates(pair):
    pair.reset(WEIGHTS["scrambled"](pair.config))
    losses = []
    for update, batch in enumerate(batches(pair.config, 2) * 25):
        (ours, our_norm), (theirs, their_norm) = pair.gradients(batch, update)
        hold(LOSS, abs(ours - theirs), f"update {update}")
        pair.apply(update, (our_norm, their_norm))
        losses.append(ours)
    assert losses[-1] < losses[0] - 0.5, "it must have learned something, or equality proves nothing"
    hold(TRAJECTORY, *largest_error(pair.states(), pair.start, pair.apart))


def test_a_long_row():
    """Rotary faults grow with the position: rows of 40 tokens can miss them."""
    config = make_config(VARIANTS["llama-like"], model__context=512, train__batch_size=1, model__layers=1)
    pair = make_pair(config)
    hold(LOGITS, nrel(*pair.logits(batches(config, 1)[0][:, :-1], 0)), "512 tokens")


def test_a_key_bias_has_no_gradient_but_rounding():
    """With learned positions; it is left out of the other gates, and this is what is left to say of it."""
    pair = make_pair(make_config(VARIANTS["gpt2-like"]))
    pair.gradients(batches(pair.config, 1)[0], 0)
    assert len(pair.apart) == 2
    for gradients in pair.gradient_tensors():
        for key in pair.apart:
            query = gradients[key.replace(".k.", ".q.")]
            hold(KEY_BIAS, float(np.linalg.norm(gradients[key]) / np.linalg.norm(query)), key)


@pytest.mark.parametrize(("dtype", "gate"), [("float64", ALONE), ("float32", ALONE_32)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_alone(name, dtype, gate):
    """The same gradients into both, 200 times: ordinary ones, ones as small as epsilon, and pure noise."""
    pair = _fed(name, dtype, decay=0.1 if dtype == "float64" else 0.0)
    ours, theirs = pair.states()
    error, where = displacement(ours["parameters"], theirs["parameters"], pair.start)
    hold(gate, error, f"{name}, {where}")


def test_decay_in_float32():
    """What of the decay of a matrix is lost: the error along the matrix itself, where other roundings average out."""
    name = "blocks.0.attention.q.weight"
    start = _fed("adamw", "float64", 0.1).start[name].astype(np.float64)
    exact = _fed("adamw", "float64", 0.1).states()[1]["parameters"][name]
    for stack, state in zip(("torch", "jax"), _fed("adamw", "float32", 0.1).states(), strict=True):
        lost = np.vdot(state["parameters"][name] - exact, start) / np.vdot(start, start)
        hold(DECAY_32, float(abs(lost)) / (200 * 1e-3 * 0.1), f"{stack}, {name}")


@functools.cache
def _fed(name, dtype, decay):
    config = make_config(
        VARIANTS["gpt2-like"], optimizer__name=name, precision__compute=dtype, optimizer__weight_decay=decay
    )
    pair = make_pair(config)
    rows = parameter_table(config.model)
    sizes = {row.name: 10.0 ** -(number % 5 * 2 + 1) for number, row in enumerate(rows)}  # 1e-1 to 1e-9
    kinds = [
        {row.name: normal_rows(k, f"gradient/{row.name}", (*row.shape, 1), sizes[row.name])[..., 0] for row in rows}
        for k in range(7)
    ]
    trees = [
        _like(pair.jax.params, to_jax_tree(config.model, d, config.execution.vocab_multiple), dtype) for d in kinds
    ]
    for update in range(200):
        pair.jax.grads = trees[update % 7]
        for row_name, parameter in pair.torch.model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: len(kinds[update % 7][row_name])] = torch.from_numpy(kinds[update % 7][row_name])
        for stack in pair.stacks:
            stack.apply(1e-3, 0.75, update)
    return pair


def _like(params, tree, dtype):
    flat = dict(nnx.to_flat_state(params))
    leaves = {path: leaf.replace(jax.numpy.asarray(tree[".".join(path)], dtype)) for path, leaf in flat.items()}
    return nnx.from_flat_state(leaves)

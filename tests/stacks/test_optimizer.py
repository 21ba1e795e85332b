"""The update rules against torch's and optax's own, where those define the same thing.

Where they don't: in float32 optax rounds the bias corrections and torch 1 - lr x decay, so float64 is compared; optax
clips without epsilon (clip_factor is compared with torch in parity/); torch.optim.Muon iterates in bfloat16 (compared
at bfloat16's own precision) and optax.contrib.muon adds its epsilon elsewhere.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxtrain.arrays
import jaxtrain.optimizer
import torchtrain.optimizer
from coretrain.contract.parameters import parameter_table
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.batches import COUNTING, random_text
from torchtrain.trainer import Trainer as TorchTrainer

RATES = [1e-3, 3e-3, 2e-3, 1e-4]


def random_gradients(params, update):
    """Gradients like `params`, a pure function of the update."""
    rng = np.random.default_rng(update)
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_jax_against_optax(small_config, name):
    config = small_config(precision__compute="float64", optimizer__name=name)
    trainer, o = JaxTrainer(config), config.optimizer
    table = {row.jax_path: row for row in parameter_table(config.model)}
    decays = jax.tree_util.tree_map_with_path(lambda path, _: table[jaxtrain.arrays.dotted(path)].decay, trainer.params)
    decay = o.weight_decay if name == "adamw" else 0.0
    params = jax.tree.map(jnp.array, trainer.params)
    rule = optax.inject_hyperparams(optax.adamw, static_args=("b1", "b2", "eps", "weight_decay", "mask"))(
        1.0, b1=o.beta1, b2=o.beta2, eps=o.eps, weight_decay=decay, mask=lambda _: decays
    )
    state = rule.init(params)
    for update, rate in enumerate(RATES):
        trainer.last_gradients = random_gradients(params, update)
        steps, state = rule.update(
            random_gradients(params, update), state._replace(hyperparams={"learning_rate": rate}), params
        )
        params = optax.apply_updates(params, steps)
        trainer.apply(rate, 1.0, update)
    # floor 2e-16: one rounding of a gain near 1; lr x (1 + 1e-6) is 6e-9
    chex.assert_trees_all_close(trainer.params, params, rtol=0, atol=1e-14)


@pytest.mark.parametrize("fused", [False, True])
def test_torch_against_torchs_own(small_config, fused):
    config = small_config(precision__compute="float64")
    trainer, o = TorchTrainer(config), config.optimizer
    table = {row.name: row.decay for row in parameter_table(config.model)}
    copies = {name: p.detach().clone().requires_grad_() for name, p in trainer.model.named_parameters()}
    groups = [
        {"params": [p for name, p in copies.items() if table[name] == decays], "weight_decay": o.weight_decay * decays}
        for decays in (True, False)
    ]
    own = torch.optim.AdamW(groups, betas=(o.beta1, o.beta2), eps=o.eps, fused=fused)
    for update, rate in enumerate(RATES):
        torch.manual_seed(update)
        for name, parameter in trainer.model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            copies[name].grad = 0.5 * parameter.grad
        for group in own.param_groups:
            group["lr"] = rate
        own.step()
        trainer.apply(rate, 0.5, update)
    for name, parameter in trainer.model.named_parameters():
        # floor 7e-18; lr x (1 + 1e-6) is 6e-9
        torch.testing.assert_close(parameter, copies[name], rtol=0, atol=1e-15)


def test_muon_against_torchs_own():
    """torch.optim.Muon orthogonalizes in bfloat16: 8 bits, so 1 % of an update; a wrong scale is 80 %."""
    torch.manual_seed(0)
    start = torch.randn(24, 48)
    theirs = start.clone().requires_grad_()
    own = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    ours, buffer = start.clone(), torch.zeros_like(start)
    for _ in range(3):
        gradient = torch.randn_like(start)
        theirs.grad = gradient.clone()
        own.step()
        buffer = 0.95 * buffer + 0.05 * gradient
        direction = torchtrain.optimizer.orthogonalize(0.05 * gradient + 0.95 * buffer)
        ours = ours * (1 - 0.1 * 0.1) - 0.1 * 0.2 * 48**0.5 * direction
    error = torch.linalg.norm(ours - theirs.detach()) / torch.linalg.norm(start - theirs.detach())
    assert error < 5e-2  # floor 9e-3, the rounding of eight bits


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16), (3, 12, 40)])
def test_orthogonalize(shape):
    """Singular values end near 1 (the quintic leaves 0.68 to 1.13), and both stacks agree to float64's rounding."""
    matrix = np.random.default_rng(0).standard_normal(shape)
    ours = torchtrain.optimizer.orthogonalize(torch.from_numpy(matrix)).numpy()
    theirs = np.asarray(jaxtrain.optimizer.orthogonalize(jnp.asarray(matrix)))
    chex.assert_shape(theirs, shape)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)  # floor 2e-15
    values = np.linalg.svd(ours, compute_uv=False)
    if shape[-1] != shape[-2]:  # a square matrix has a singular value too near 0 for five steps
        assert 0.5 < values.min() < values.max() < 1.3


@pytest.mark.parametrize("shape", [(1_000_000,), (131_072, 8)], ids=str)
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_global_norm_of_a_million_numbers(stack, shape):
    """torch's own float32 norm of these is 3e-6 off, and 9e-6 column by column: it adds up naively."""
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    exact = np.sqrt((values.astype(np.float64) ** 2).sum() * 2)
    if stack == "torch":
        norm = torchtrain.optimizer.global_norm([torch.from_numpy(values)] * 2).item()
    else:
        norm = float(jaxtrain.optimizer.global_norm([jnp.asarray(values)] * 2))
    assert abs(norm / exact - 1) < 1e-6  # floors: torch 5e-14, jax 3e-8


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("make", [TorchTrainer, JaxTrainer], ids=["torch", "jax"])
def test_moments_go_out_and_come_back(small_config, make, name):
    config = small_config(optimizer__name=name)
    first, second = make(config), make(small_config(optimizer__name=name, train__seed=5))
    batch = COUNTING
    for update in range(2):
        first.gradients(batch, update, 1.0)
        first.apply(1e-3, 1.0, update)
    groups = first.export()
    assert groups.keys() == {"parameters", "first_moment", "second_moment"} | (
        {"momentum"} if name == "muon" else set()
    )
    second.adopt(groups, 2)
    for trainer in (first, second):
        trainer.gradients(batch, 2, 1.0)
        trainer.apply(1e-3, 1.0, 2)
    chex.assert_trees_all_equal(first.export(), second.export())


def test_muon_has_all_of_an_adapter(small_config):
    """Its matrices are all in blocks, and Adam is left with nothing; the stacks agree, and go on from each other's."""
    config = small_config(
        precision__compute="float64", optimizer__name="muon", adapter__kind="lora", adapter__rank=4, model__bias="false"
    )
    batch = random_text(config)
    stacks = [make(config) for make in (TorchTrainer, JaxTrainer)]
    start = stacks[0].export()["parameters"]
    for update in range(4):
        if update == 2:
            states = [stack.export() for stack in stacks]
            for stack, other in zip(stacks, reversed(states), strict=True):
                stack.adopt(other, update)
        for stack in stacks:
            stack.gradients(batch, update, 1.0)
            stack.apply(1e-2, 1.0, update)
    ours, theirs = (stack.export() for stack in stacks)
    assert set(ours["momentum"]) == set(ours["parameters"]) == set(theirs["momentum"])
    for name, value in ours["parameters"].items():
        moved = np.linalg.norm(value - start[name])
        assert moved > 1e-3
        # floor 6e-15; a momentum x (1 + 1e-9) gives 7e-10
        assert np.linalg.norm(value - theirs["parameters"][name]) < 1e-12 * moved, name

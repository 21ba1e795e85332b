"""Without a model: initial weights, masks, rates, decay, the optimizer alone, norms, attention alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from coretrain.config.run import RunConfig
from coretrain.contract.dropout import dropout_keys
from coretrain.contract.parameters import parameter_table, to_jax_tree
from coretrain.contract.randomness import normal_rows
from coretrain.contract.schedule import learning_rate
from parity.errors import displacement, mismatches, nrel
from parity.gates import (
    ALONE,
    DECAY,
    INITIAL,
    KERNEL_64,
    MASKS,
    NORMS_32,
    RATE_USED,
    Gate,
)
from parity.pair import VARIANTS, make_config
from parity.probes.sides import (
    TORCH,
    Seen,
    Side,
    largest,
    make,
    weights_of,
)


def run_initial(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    return s.trainer.Trainer(make_config(VARIANTS[variant])).export()["parameters"]


def judge_initial(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    assert ours.keys() == theirs.keys()
    return {INITIAL: sum(mismatches(ours[name], theirs[name]) for name in ours)}


def run_masks(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config, rate = make_config(VARIANTS[variant]), 0.3
    keys, rows, x = dropout_keys(config.model, 7, 11), np.array([5, 0, 9, 4_000_000]), np.ones((4, 20, 48))
    word = np.int32 if s is TORCH else np.uint32
    dropout = s.layers.Dropout(s.array(keys.view(word)), s.array(rows.astype(word)))
    sites = [s.layers.drop(s.array(x), rate, dropout, site) for site in range(len(keys))]
    return {"kept": np.stack([np.asarray(site) > 0 for site in sites])}


def judge_masks(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {MASKS: mismatches(ours["kept"], theirs["kept"])}


def bare(**more: object) -> RunConfig:
    """The smallest model that has every kind of parameter: what is looked at is the optimizer."""
    return make_config(VARIANTS["gpt2-like"], model__layers=1, model__width=16, **more)


def give(s: Side, stack: Any, gradients: Mapping[str, np.ndarray]) -> None:
    """`gradients`, by canonical name, in the place of those of a batch."""
    if s is TORCH:
        for name, parameter in stack.model.named_parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad[: len(gradients[name])] = torch.from_numpy(gradients[name])
        return
    config = stack.config
    tree = to_jax_tree(config.model, gradients, config.execution.vocab_multiple)
    flat = dict(nnx.to_flat_state(stack.params))
    stack.last_gradients = nnx.from_flat_state(
        {path: leaf.replace(jnp.asarray(tree[".".join(map(str, path))], leaf.dtype)) for path, leaf in flat.items()}
    )


def run_rates(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """With gradients of one and no decay Adam's first moment over its second is one: it moves by the rate."""
    config = bare(optimizer__eps=1e-30, optimizer__weight_decay=0)
    stack = make(s, config, weights_of(config, "initial"), shared)
    ones = {row.name: np.ones(row.shape) for row in parameter_table(config.model)}
    gains = [_gain(s, stack)]
    for update in range(config.train.updates + 1):
        give(s, stack, ones)
        stack.apply(learning_rate(config, update), 1.0, update)
        gains.append(_gain(s, stack))
    return {"rates": -np.diff(gains)}


def _gain(s: Side, stack: Any) -> float:
    return float(stack.model.norm.weight.detach()[0] if s is TORCH else stack.params["norm"]["scale"][...][0])


def judge_rates(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    # Absolute, beside a parameter of size 1: its rounding is 1e-16, a rate 1e-4 to 3e-3.
    return {RATE_USED: float(np.abs(ours["rates"] - theirs["rates"]).max())}


def run_decay(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = bare()
    stack = make(s, config, weights_of(config, state), shared)
    give(s, stack, {row.name: np.zeros(row.shape) for row in parameter_table(config.model)})
    before = stack.export()["parameters"]
    stack.apply(0.1, 1.0, 0)
    return {"ratio": {name: value / before[name] for name, value in stack.export()["parameters"].items()}}


def judge_decay(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    # Two roundings at most; a wrong decay of any kind is 1e-5 at least.
    wrong = [not np.allclose(ours["ratio"][name], theirs["ratio"][name], 1e-15, 0) for name in theirs["ratio"]]
    return {DECAY: sum(wrong)}


def run_alone(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    """Gradients of 1e-1 to 1e-9, below Adam's epsilon."""
    config = bare()
    stack, rows = make(s, config, weights_of(config, state), shared), parameter_table(config.model)
    for update in range(20):
        given = {
            row.name: normal_rows(update, f"gradient/{row.name}", (*row.shape, 1), 10.0 ** -(n % 5 * 2 + 1))[..., 0]
            for n, row in enumerate(rows)
        }
        give(s, stack, given)
        stack.apply(1e-3, 0.75, update)
    return stack.export()["parameters"]


def judge_alone(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {ALONE: displacement(ours, theirs, weights_of(bare(), state))[0]}


def run_norms(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    config = make_config(VARIANTS[variant])
    x = np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32) + np.float32(1000)
    wide = x.astype(np.float64)
    wide = wide - wide.mean(-1, keepdims=True) if config.model.norm == "layernorm" else wide
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + config.model.norm_eps)
    if s is TORCH:
        norm = s.layers.Norm(config.model)
        torch.nn.init.ones_(norm.weight)
        if norm.bias is not None:
            torch.nn.init.zeros_(norm.bias)
        return {"exact": exact, "found": norm(torch.from_numpy(x)).detach().numpy()}
    norm = s.layers.Norm(config.model, (), jnp.dtype("float32"))
    norm.scale[...] = jnp.ones(48, jnp.float32)
    if norm.bias is not None:
        norm.bias[...] = jnp.zeros(48, jnp.float32)
    return {"exact": exact, "found": np.asarray(norm(jnp.asarray(x)))}


def judge_norms(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {NORMS_32: nrel(ours["found"], ours["exact"])}


def run_kernels(s: Side, variant: str, state: str, shared: frozenset[str]) -> Seen:
    rng = np.random.default_rng(0)
    shapes = {"square": (6, 6, 2), "more keys": (2, 6, 2), "many heads": (2, 6, 4)}
    seen = {}
    for name, (T, S, K) in shapes.items():
        arrays = [s.array(rng.standard_normal((2, n, h, 8))) for n, h in ((T, 4), (S, K), (S, K))]
        seen[name] = np.asarray(s.attention.attention("plain", *arrays))
    return seen


def judge_kernels(ours: Seen, theirs: Seen, variant: str, state: str) -> dict[Gate, float]:
    return {KERNEL_64: largest(nrel(ours[name], theirs[name]) for name in theirs)}

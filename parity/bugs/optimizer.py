"""Bugs in the update rule: decay, moments, bias correction, Muon."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import jaxtrain.optimizer
import torchtrain.model
import torchtrain.optimizer
from jaxtrain.arrays import dotted
from parity.gates import (
    ALONE,
    DECAY,
    NORM,
    UPDATE,
)
from parity.mutants import (
    BIASED,
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import TORCH, Side


def configured(patch: Patch, s: Side, **changes: Any) -> None:
    """The optimizer built from other settings."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, parameters: Any) -> None:
            f(self, config.model_copy(update={"optimizer": config.optimizer.model_copy(update=changes)}), parameters)

        return build

    wrap(patch, s.optimizer.Optimizer, "__init__", init)


def _table(patch: Patch, s: Side, decays: Callable[[Any], bool]) -> None:
    """Weight decay on the rows that `decays` names."""

    def table(f: Any) -> Any:
        return lambda config: tuple(dataclasses.replace(row, decay=decays(row)) for row in f(config))

    wrap(patch, s.optimizer, "trainable_parameters", table)


def change_step(patch: Patch, s: Side, change: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`change(row, old, new, lr)` for what an update makes of a parameter."""
    if s is TORCH:

        def stepped(f: Any) -> Any:
            @torch.no_grad()
            def step(self: Any, lr: float, factor: float) -> None:
                old = {name: p.clone() for name, p in self.parameters.items()}
                f(self, lr, factor)
                for row in s.optimizer.trainable_parameters(self.config):
                    parameter = self.parameters[row.name]
                    parameter.copy_(change(row, old[row.name], parameter.clone(), lr))

            return step

    else:

        def stepped(f: Any) -> Any:
            def step(self: Any, params: Any, state: Any, gradients: Any, lr: Any, factor: Any, corrections: Any) -> Any:
                rows = {row.jax_path: row for row in s.optimizer.trainable_parameters(self.config)}
                new, state = f(self, params, state, gradients, lr, factor, corrections)

                def changed(path: Any, before: Any, after: Any) -> Any:
                    return change(rows[dotted(path)], before, after, lr)

                return jax.tree_util.tree_map_with_path(changed, params, new), state

            return step

    wrap(patch, s.optimizer.Optimizer, "step", stepped)


def change_moments(patch: Patch, s: Side, change: Callable[[Any], Any]) -> None:
    """`change` on every moment after an update."""
    if s is TORCH:

        def stepped(f: Any) -> Any:
            @torch.no_grad()
            def step(self: Any, lr: float, factor: float) -> None:
                f(self, lr, factor)
                for state in self.adam.state.values():
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name].copy_(change(state[name]))

            return step

    else:

        def stepped(f: Any) -> Any:
            def step(self: Any, *args: Any) -> Any:
                new, state = f(self, *args)
                return new, jax.tree.map(change, state)

            return step

    wrap(patch, s.optimizer.Optimizer, "step", stepped)


def _torch_count(patch: Patch, count: float) -> None:
    """torch's Adam as if it had made `count` updates before the first."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, model: Any) -> None:
            f(self, config, model)
            for group in self.adam.param_groups:
                for p in group["params"]:
                    zeros = (torch.zeros_like(p), torch.zeros_like(p))
                    self.adam.state[p] = {"step": torch.tensor(count), "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}

        return build

    wrap(patch, torchtrain.optimizer.Optimizer, "__init__", init)


@mutant("optimizer", UPDATE)
def no_update_at_all(patch: Patch, s: Side) -> None:
    """Parameters that the optimizer never got: a tolerance of twice the learning rate lets it pass."""
    change_step(patch, s, lambda row, old, new, lr: old)


@mutant("optimizer", UPDATE)
def sign_flipped(patch: Patch, s: Side) -> None:
    """Up the hill: a tolerance of twice the learning rate lets it pass."""
    change_step(patch, s, lambda row, old, new, lr: 2 * old - new)


@mutant("optimizer", DECAY)
def decay_on_biases_and_gains(patch: Patch, s: Side) -> None:
    """One parameter group for all."""
    _table(patch, s, lambda row: True)


@mutant("optimizer", DECAY)
def no_decay_on_embeddings(patch: Patch, s: Side) -> None:
    """Embeddings among what isn't decayed, as in some recipes."""
    _table(patch, s, lambda row: row.decay and not row.name.startswith("embed"))


@mutant("optimizer", UPDATE, LLAMA)
def decay_a_thousandth_high(patch: Patch, s: Side) -> None:
    """weight_decay x 1.001."""
    configured(patch, s, weight_decay=0.1 * 1.001)


@mutant("optimizer", UPDATE, LLAMA)
def decay_on_the_updated_parameter(patch: Patch, s: Side) -> None:
    """Decay after Adam's step instead of before it."""
    change_step(patch, s, lambda row, old, new, lr: new * (1 - lr * 0.1) if row.decay else new)
    configured(patch, s, weight_decay=0.0)


@mutant("optimizer", UPDATE, LLAMA)
def decay_in_the_gradient(patch: Patch, s: Side) -> None:
    """Adam's L2 term for AdamW's decoupled decay."""
    configured(patch, s, weight_decay=0.0)
    if s is TORCH:

        def stepped(f: Any) -> Any:
            def step(self: Any, lr: float, factor: float) -> None:
                for row in s.optimizer.trainable_parameters(self.config):
                    p = self.parameters[row.name]
                    p.grad = factor * p.grad + (0.1 * p.detach() if row.decay else 0)
                f(self, lr, 1.0)

            return step

    else:

        def stepped(f: Any) -> Any:
            def step(self: Any, params: Any, state: Any, grads: Any, lr: Any, factor: Any, corrections: Any) -> Any:
                rows = {row.jax_path: row for row in s.optimizer.trainable_parameters(self.config)}

                def coupled(path: Any, g: Any, p: Any) -> Any:
                    return factor * g + (0.1 * p if rows[dotted(path)].decay else 0)

                grads = jax.tree_util.tree_map_with_path(coupled, grads, params)
                return f(self, params, state, grads, lr, jnp.ones_like(factor), corrections)

            return step

    wrap(patch, s.optimizer.Optimizer, "step", stepped)


@mutant("optimizer", UPDATE)
def beta1_off_in_its_7th_digit(patch: Patch, s: Side) -> None:
    """beta1 0.9000001."""
    configured(patch, s, beta1=0.9000001)


@mutant("optimizer", UPDATE)
def beta2_at_its_default(patch: Patch, s: Side) -> None:
    """beta2 0.999 for 0.95."""
    configured(patch, s, beta2=0.999)


@mutant("optimizer", ALONE)
def epsilon_ten_times_larger(patch: Patch, s: Side) -> None:
    """epsilon 1e-7 for 1e-8: Keras' default."""
    configured(patch, s, eps=1e-7)


@mutant("optimizer", ALONE)
def epsilon_before_the_correction(patch: Patch, s: Side) -> None:
    """m / (sqrt(v) + eps), corrected afterwards, as in the paper's short form."""
    if s is TORCH:
        count = [0]

        def stepped(f: Any) -> Any:
            def step(self: Any, lr: float, factor: float) -> None:
                count[0] += 1
                o = self.config.optimizer
                for group in self.adam.param_groups:
                    group["eps"] = o.eps / math.sqrt(1 - o.beta2 ** count[0])
                f(self, lr, factor)

            return step

        wrap(patch, s.optimizer.Optimizer, "step", stepped)
    else:
        _jax_adam(patch, lambda m, v, one, two, eps: m / one / ((jnp.sqrt(v) + eps) / jnp.sqrt(two)))


def _jax_adam(patch: Patch, direction: Callable[..., Any]) -> None:
    """jaxtrain's Adam with another formula at its end."""

    def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
        def init(params: Any) -> Any:
            return jaxtrain.optimizer.Moments(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

        def update(updates: Any, state: Any, params: Any = None, *, corrections: Any, **_: Any) -> Any:
            first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, updates)
            second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.second, updates)
            moved = jax.tree.map(lambda m, v: direction(m, v, *corrections, eps), first, second)
            return moved, jaxtrain.optimizer.Moments(first, second)

        return optax.GradientTransformationExtraArgs(init, update)

    patch.setattr(jaxtrain.optimizer, "scale_by_adam", scale_by_adam)


@mutant("optimizer", UPDATE)
def bias_correction_off_by_one(patch: Patch, s: Side) -> None:
    """The count of updates read after it was raised."""
    if s is TORCH:
        _torch_count(patch, 1.0)
    else:
        wrap(patch, s.trainer, "bias_corrections", lambda f: lambda optimizer, applied: f(optimizer, applied + 1))


@mutant("optimizer", UPDATE)
def no_bias_correction(patch: Patch, s: Side) -> None:
    """BERT's Adam."""
    if s is TORCH:
        _torch_count(patch, 1e6)
    else:
        patch.setattr(s.trainer, "bias_corrections", lambda optimizer, applied: (1.0, 1.0))


@mutant("optimizer", UPDATE, sides=("jax",))
def bias_correction_in_float32(patch: Patch, s: Side) -> None:
    """optax's own scale_by_adam: 1 - beta^t in float32."""

    def corrections(o: Any, applied: int) -> tuple[float, ...]:
        t = np.float32(applied + 1)
        return tuple(float(1 - np.float32(beta) ** t) for beta in (o.beta1, o.beta2))

    patch.setattr(s.trainer, "bias_corrections", corrections)


@mutant("optimizer", UPDATE, LLAMA)
def moments_in_bfloat16(patch: Patch, s: Side) -> None:
    """Moments in the dtype of the activations."""
    change_moments(patch, s, lambda moment: s.rounded(moment, "bfloat16"))


@mutant("optimizer", UPDATE, LLAMA)
def moments_in_float32(patch: Patch, s: Side) -> None:
    """Moments in float32 inside a float64 path."""
    change_moments(patch, s, lambda moment: s.rounded(moment, "float32"))


@mutant("optimizer", UPDATE, LLAMA)
def weights_in_float32(patch: Patch, s: Side) -> None:
    """Parameters that pass through a narrower master copy after each update."""
    change_step(patch, s, lambda row, old, new, lr: s.rounded(new, "float32"))


@mutant("optimizer", NORM, sides=("torch",))
def gradients_not_cleared(patch: Patch, s: Side) -> None:
    """zero_grad forgotten: the second batch's gradients hold the first's."""
    patch.setattr(torchtrain.model.GPT, "zero_grad", lambda self, set_to_none=True: None)


@mutant("optimizer", UPDATE, BIASED)
def muon_momentum_off(patch: Patch, s: Side) -> None:
    """Momentum 0.9 for 0.95."""
    configured(patch, s, muon_momentum=0.9)


@mutant("optimizer", UPDATE, BIASED)
def muon_scaled_by_the_shorter_side(patch: Patch, s: Side) -> None:
    """0.2 sqrt(min(rows, columns)) for max."""

    def orthogonalize(f: Any) -> Any:
        return lambda matrix: f(matrix) * math.sqrt(min(matrix.shape[-2:]) / max(matrix.shape[-2:]))

    wrap(patch, s.optimizer, "orthogonalize", orthogonalize)


@mutant("optimizer", UPDATE, BIASED)
def newton_schulz_coefficient_off(patch: Patch, s: Side) -> None:
    """3.4445 typed as 3.4446."""
    patch.setattr(s.optimizer, "NEWTON_SCHULZ", (3.4446, -4.7750, 2.0315))


@mutant("optimizer", UPDATE, BIASED)
def muon_orthogonalizes_in_bfloat16(patch: Patch, s: Side) -> None:
    """The original's cast, where the contract has none."""
    wrap(patch, s.optimizer, "orthogonalize", lambda f: lambda matrix: s.rounded(f(matrix), "bfloat16"))

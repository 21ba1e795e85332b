"""Either stack behind one face, for bugs and probes; what JAX compiles for it is shared where it can be."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

import jaxtrain.attention
import jaxtrain.data
import jaxtrain.decode
import jaxtrain.layers
import jaxtrain.model
import jaxtrain.objective
import jaxtrain.optimizer
import jaxtrain.step
import jaxtrain.trainer
import torchtrain.attention
import torchtrain.data
import torchtrain.decode
import torchtrain.layers
import torchtrain.model
import torchtrain.objective
import torchtrain.optimizer
import torchtrain.step
import torchtrain.trainer
from coretrain.base.arrays import Tensors
from coretrain.config.run import RunConfig
from parity.compiling import quick_jit
from parity.pair import (
    WEIGHTS,
    jax_gradients,
    tiny_head,
    torch_gradients,
)

Seen = dict[Any, Any]
"""What a probe saw, under names of its own."""


@dataclass(frozen=True)
class Side:
    """One stack with its modules, and the few words that the frameworks spell differently."""

    name: str
    xp: Any
    call: str
    nn: Any
    model: ModuleType
    layers: ModuleType
    attention: ModuleType
    optimizer: ModuleType
    data: ModuleType
    decode: ModuleType
    trainer: ModuleType
    objective: ModuleType
    step: ModuleType

    def array(self, value: np.ndarray) -> Any:
        """A tensor of this framework."""
        return torch.from_numpy(np.ascontiguousarray(value)) if self.name == "torch" else jnp.asarray(value)

    def cast(self, x: Any, dtype: str) -> Any:
        """x in another dtype."""
        return x.to(getattr(torch, dtype)) if self.name == "torch" else x.astype(dtype)

    def rounded(self, x: Any, dtype: str) -> Any:
        """x through another dtype and back."""
        return self.cast(self.cast(x, dtype), str(x.dtype).removeprefix("torch."))

    def stop(self, x: Any) -> Any:
        """x without gradient."""
        return x.detach() if self.name == "torch" else jax.lax.stop_gradient(x)

    def parameter(self, value: Any) -> Any:
        """The array of a parameter."""
        return value if self.name == "torch" else value[...]

    def gain(self, norm: Any) -> Any:
        """The gain of a Norm."""
        return norm.weight if self.name == "torch" else norm.scale[...]


TORCH = Side(
    "torch", torch, "forward", F, torchtrain.model, torchtrain.layers, torchtrain.attention, torchtrain.optimizer,
    torchtrain.data, torchtrain.decode, torchtrain.trainer, torchtrain.objective, torchtrain.step,
)  # fmt: skip
JAX = Side(
    "jax", jnp, "__call__", jax.nn, jaxtrain.model, jaxtrain.layers, jaxtrain.attention, jaxtrain.optimizer,
    jaxtrain.data, jaxtrain.decode, jaxtrain.trainer, jaxtrain.objective, jaxtrain.step,
)  # fmt: skip
SIDES = {"torch": TORCH, "jax": JAX}

UNMUTATED = frozenset({"gradients", "step", "update", "decode"})
"""What of JAX's compiled work is shared; a mutant shares only what it leaves alone."""


@functools.cache
def weights_of(config: RunConfig, state: str) -> Tensors:
    """Weights in one of `WEIGHTS`' states or `tiny_head`, made once."""
    return tiny_head(config) if state == "tiny head" else WEIGHTS[state](config)


@functools.cache
def _compiled(config: RunConfig, part: str) -> Any:
    """JAX's gradients, optimizer step or whole update of `config`, compiled once."""
    return _fresh(jaxtrain.trainer.Trainer(config), part)


def _fresh(stack: Any, part: str) -> Any:
    return quick_jit(getattr(stack.programs, part).__wrapped__)


def make(s: Side, config: RunConfig, weights: Mapping[str, np.ndarray] | None, shared: frozenset[str]) -> Any:
    """A trainer; JAX's takes what is already compiled of `shared`, and compiles the rest afresh."""
    stack = s.trainer.Trainer(config, weights)
    if s is JAX:
        parts = ("gradients", "step", "update")
        own = {part: _compiled(config, part) if part in shared else _fresh(stack, part) for part in parts}
        stack.programs = replace(stack.programs, **own)
    return stack


def logits_of(s: Side, stack: Any, tokens: np.ndarray, update: int | None) -> np.ndarray:
    """Logits [B, T, V] with the dropout of `update`, traced afresh in JAX; without dropout where it is None."""
    dropout = None if update is None else s.step.dropout_masks(stack.config, update, len(tokens))
    if s is TORCH:
        with torch.no_grad():
            return stack.model.logits(stack.model(torch.from_numpy(tokens).long(), dropout)).numpy()

    def forward(params, tokens, dropout):
        model = nnx.merge(graph, params)
        return model.logits(model(tokens, dropout))

    graph, params = nnx.split(stack.whole_model())
    return np.asarray(quick_jit(forward)(params, tokens, dropout))


def gradients_of(s: Side, stack: Any) -> dict[str, np.ndarray]:
    """The last gradients by canonical name."""
    return torch_gradients(stack) if s is TORCH else jax_gradients(stack)


def largest(errors: Any) -> float:
    """The largest of some errors."""
    return float(np.max(np.array(list(errors))))  # NaN counts as the largest; Python's max loses it

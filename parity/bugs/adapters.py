"""Bugs in low-rank adapters: scale, start, place, dropout, what is frozen, merging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from coretrain.adapters import bank
from parity.gates import (
    FROZEN,
    GRADIENTS,
    INITIAL,
    LOGITS,
    MERGED,
    UPDATE,
)
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.adapters import LORA
from parity.probes.sides import TORCH, Side

BESIDE, UPDATES, MERGING = "adapter gradients", "adapter updates", "adapter merge"


def _made(patch: Patch, s: Side, change: Callable[[Any, Any], None]) -> None:
    """`change(adapter, its config)` once each is made."""

    def wrapped(f: Any) -> Any:
        def init(self: Any, config: Any, *given: Any) -> None:
            f(self, config, *given)
            change(self, config.adapter)

        return init

    wrap(patch, LORA[s.name].LowRank, "__init__", wrapped)


def _set(name: str, value: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    return lambda adapter, config: setattr(adapter, name, value(config))


@mutant("adapters", LOGITS, probe=BESIDE)
def adapter_scale_is_rank_over_alpha(patch: Patch, s: Side) -> None:
    """alpha and rank changed places."""
    _made(patch, s, _set("scale", lambda c: c.rank / c.alpha))


@mutant("adapters", LOGITS, LLAMA, probe=BESIDE)
def rslora_scaled_as_lora(patch: Patch, s: Side) -> None:
    """alpha / rank where alpha / sqrt(rank) was asked for."""
    _made(patch, s, _set("scale", lambda c: c.alpha / c.rank))


@mutant("adapters", LOGITS, probe=BESIDE)
def parts_of_a_layer_drop_alike(patch: Patch, s: Side) -> None:
    """One dropout site for all adapters of a layer."""
    _made(patch, s, _set("part", lambda c: 0))


@mutant("adapters", LOGITS, LLAMA, probe=BESIDE)
def adapter_on_the_wrong_projection(patch: Patch, s: Side) -> None:
    """The adapters of keys and values changed places, as in a fused matrix taken apart in another order."""

    def swapped(f: Any) -> Any:
        def heads(self: Any, *given: Any) -> Any:
            k, v = self.k.adapter, self.v.adapter
            self.k.adapter, self.v.adapter = v, k
            try:
                return f(self, *given)
            finally:
                self.k.adapter, self.v.adapter = k, v

        return heads

    wrap(patch, s.layers.Attention, "heads", swapped)


def _linear(patch: Patch, s: Side, add: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`add(adapter, x, masks, drop)` beside each linear layer."""

    def wrapped(f: Any) -> Any:
        def call(self: Any, x: Any, *masks: Any) -> Any:
            adapter, self.adapter = self.adapter, None
            try:
                y = f(self, x, *masks)
            finally:
                self.adapter = adapter
            return y if adapter is None else y + add(adapter, x, masks[0] if masks else None, s.layers.drop)

        return call

    wrap(patch, s.layers.Linear, s.call, wrapped)


@mutant("adapters", LOGITS, probe=BESIDE)
def dropout_on_the_adapters_output(patch: Patch, s: Side) -> None:
    """drop(B A x) for B A drop(x): as many elements on average, and other ones."""
    _linear(patch, s, lambda a, x, masks, drop: drop(a(x), a.rate, masks, a.part))


@mutant("adapters", GRADIENTS, probe=BESIDE)
def no_gradient_through_the_adapters_input(patch: Patch, s: Side) -> None:
    """x detached before the adapter: its own gradients are right in the last layer, and wrong below."""
    _linear(patch, s, lambda a, x, masks, drop: a(drop(s.stop(x), a.rate, masks, a.part)))


def _start(patch: Patch, s: Side, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    def wrapped(f: Any) -> Any:
        def start(config: Any, tensors: Any) -> Any:
            return {name: change(name, value) for name, value in f(config, tensors).items()}

        return start

    wrap(patch, s.trainer, "with_adapter", wrapped)


@mutant("adapters", INITIAL, probe="adapter start")
def adapter_drawn_as_its_transpose(patch: Patch, s: Side) -> None:
    """A drawn as [in, rank] and turned: of the right shape, and of another order."""
    _start(patch, s, lambda n, v: v.reshape(v.shape[::-1]).T.copy() if n.endswith(".adapter.a") else v)


@mutant("adapters", INITIAL, probe="adapter start")
def adapter_drawn_too_wide(patch: Patch, s: Side) -> None:
    """Kaiming's gain of a ReLU, sqrt(6) over sqrt(in): 2.45 times as wide, as Qwix draws A."""
    _start(patch, s, lambda n, v: v * np.float32(6**0.5) if n.endswith(".adapter.a") else v)


@mutant("adapters", FROZEN, probe=UPDATES)
def base_not_frozen(patch: Patch, s: Side) -> None:
    """The base is in the optimizer: without gradients it decays."""

    def decayed(f: Any) -> Any:
        def apply(self: Any, lr: float, *given: Any) -> None:
            f(self, lr, *given)
            factor = 1 - lr * self.config.optimizer.weight_decay
            if s is TORCH:
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        parameter.mul_(1.0 if parameter.requires_grad else factor)
            else:
                self.frozen = jax.tree.map(lambda leaf: leaf * factor, self.frozen)

        return apply

    wrap(patch, s.trainer.Trainer, "apply", decayed)


@mutant("adapters", UPDATE, probe=UPDATES)
def adapters_without_decay(patch: Patch, s: Side) -> None:
    """A and B are left out of weight decay, as by a list of module types that has only linear layers."""
    import dataclasses

    def without(f: Any) -> Any:
        def table(config: Any) -> Any:
            return tuple(dataclasses.replace(row, decay=False) for row in f(config))

        return table

    wrap(patch, s.optimizer, "trainable_parameters", without)


def _added(patch: Patch, s: Side, change: Callable[[Any, str, np.ndarray], np.ndarray]) -> None:
    def wrapped(f: Any) -> Any:
        def added(config: Any, tensors: Any, base: Any) -> Any:
            return {name: change(config, name, value) for name, value in f(config, tensors, base).items()}

        return added

    wrap(patch, bank, "added", wrapped)


@mutant("adapters", MERGED, probe=MERGING)
def merged_without_the_scale(patch: Patch, s: Side) -> None:
    """W + B A."""
    _added(patch, s, lambda config, name, delta: delta / config.adapter.scale)


@mutant("adapters", MERGED, LLAMA, probe=MERGING)
def embedding_left_out_of_the_merge(patch: Patch, s: Side) -> None:
    """A merge that goes through linear layers only."""
    _added(patch, s, lambda config, name, delta: delta * (name != "embed.token"))


@mutant("adapters", MERGED, probe=MERGING)
def taken_out_by_adding_once_more(patch: Patch, s: Side) -> None:
    """The sign lost: what a merge added is added again."""
    wrap(patch, LORA[s.name].Adapters, "_add", lambda f: lambda self, sign: f(self, 1))


@mutant("adapters", MERGED, probe=MERGING)
def biases_of_the_last_adapter_stay(patch: Patch, s: Side) -> None:
    """Switched off, an adapter leaves its biases behind."""

    def kept(f: Any) -> Any:
        def init(self: Any, *given: Any) -> None:
            f(self, *given)
            self.biases = {}

        return init

    wrap(patch, LORA[s.name].Adapters, "__init__", kept)

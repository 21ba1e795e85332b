"""Bugs in DoRA, prefixes and bottlenecks: norms, magnitudes, what a prefix stands before, what bottlenecks add to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from coretrain.adapters import merge
from parity.gates import (
    CACHE,
    GRADIENTS,
    INITIAL,
    LOGITS,
    MERGED,
    UPDATE,
)
from parity.mutants import Patch, mutant, wrap
from parity.probes.adapters import LORA
from parity.probes.sides import Side

BESIDE, MERGING = "adapter gradients", "adapter merge"
DORA, DROPPED = "dora, gpt2-like", "dora, llama-like"
PREFIX, BOTTLENECK = "prefix, llama-like", "bottleneck, gpt2-like"


def _norms(patch: Patch, s: Side, change: Callable[[Any, Any, int], Any]) -> None:
    """`change(norms, weight, axis)` in place of the norms that magnitudes are divided by."""
    wrap(patch, LORA[s.name], "norms", lambda f: lambda weight, axis: change(f, weight, axis))


@mutant("adapters", GRADIENTS, DORA, probe=BESIDE)
def dora_norm_not_detached(patch: Patch, s: Side) -> None:
    """The norm has a gradient, as in the paper's equation 5 before its section 4.3."""
    norm = s.xp.linalg.norm
    _norms(patch, s, lambda f, w, axis: norm(w, **{"dim" if s.name == "torch" else "axis": axis}))


@mutant("adapters", LOGITS, DORA, probe=BESIDE)
def magnitudes_of_the_inputs(patch: Patch, s: Side) -> None:
    """The norm along the other axis: of columns, which the paper's own layout calls so. Square matrices only."""
    _norms(patch, s, lambda f, w, axis: f(w, 1 - axis) if w.shape[0] == w.shape[1] else f(w, axis))


@mutant("adapters", LOGITS, DROPPED, probe=BESIDE)
def magnitudes_of_the_embeddings_rows(patch: Patch, s: Side) -> None:
    """One norm for a whole embedding in place of one for each column."""
    _norms(patch, s, lambda f, w, axis: f(w, axis) if w.shape[0] != 301 or axis else f(w, axis).mean())


@mutant("adapters", LOGITS, DORA, probe=BESIDE)
def dora_norm_of_the_base_alone(patch: Patch, s: Side) -> None:
    """||W|| in place of ||W + scale B A||: right at the start, when B is zero."""
    wrap(patch, LORA[s.name].Dora, "factor", lambda f: lambda self, w, delta, axis: f(self, w, 0 * delta, axis))


@mutant("adapters", LOGITS, DROPPED, probe=BESIDE)
def dora_dropout_on_the_low_rank_part_alone(patch: Patch, s: Side) -> None:
    """(f - 1) W x, where PEFT has (f - 1) W drop(x)."""

    def wrapped(f: Any) -> Any:
        def beside(self: Any, y: Any, x: Any, dropped: Any, weight: Any, bias: Any) -> Any:
            delta = (self.b @ self.a, 1) if s.name == "torch" else (self.a[...] @ self.b[...], 0)
            return f(self, y, x, x, weight, bias) - self.factor(weight[...], *delta) * (self(x) - self(dropped))

        return beside

    wrap(patch, LORA[s.name].Dora, "adapt_linear", wrapped)


@mutant("adapters", LOGITS, DORA, probe=BESIDE)
def bias_scaled_with_the_magnitudes(patch: Patch, s: Side) -> None:
    """f (W x + b) for f W x + b."""
    wrap(patch, LORA[s.name].Dora, "adapt_linear", lambda f: lambda self, y, x, d, w, bias: f(self, y, x, d, w, None))


@mutant("adapters", INITIAL, DORA, probe="adapter start")
def magnitudes_start_at_one(patch: Patch, s: Side) -> None:
    """m = 1: the start isn't the base."""

    def wrapped(f: Any) -> Any:
        def start(config: Any, tensors: Any) -> Any:
            return {n: np.ones_like(v) if n.endswith(".adapter.m") else v for n, v in f(config, tensors).items()}

        return start

    wrap(patch, s.trainer, "with_adapter", wrapped)


@mutant("adapters", UPDATE, DORA, probe="adapter updates")
def magnitudes_decay(patch: Patch, s: Side) -> None:
    """Weight decay takes m along: it pulls whole weights to zero."""

    def wrapped(f: Any) -> Any:
        def table(config: Any) -> Any:
            return tuple(dataclasses.replace(row, decay=True) for row in f(config))

        return table

    wrap(patch, s.optimizer, "trainable_parameters", wrapped)


@mutant("adapters", MERGED, DORA, probe=MERGING)
def dora_merged_as_lora(patch: Patch, s: Side) -> None:
    """W + scale B A, the magnitudes forgotten."""
    patch.setattr(merge, "directed", lambda weight, delta, m, embedding: delta)


@mutant("adapters", LOGITS, PREFIX, probe=BESIDE)
def prefix_masked_away(patch: Patch, s: Side) -> None:
    """No query sees the prefix: a mask that wasn't made wider."""

    def wrapped(f: Any) -> Any:
        # cut off again, so that the prefix still has gradients, of zero
        return lambda self, k, v: tuple(x[:, x.shape[1] - k.shape[1] :] for x in f(self, k, v))

    wrap(patch, LORA[s.name].Prefix, s.call, wrapped)


@mutant("adapters", LOGITS, PREFIX, probe=BESIDE)
def prefix_behind_the_keys(patch: Patch, s: Side) -> None:
    """The prefix last and the mask as before: early queries see the tokens after them, and no prefix."""

    def wrapped(f: Any) -> Any:
        def call(self: Any, k: Any, v: Any) -> Any:
            return tuple(s.xp.roll(x, -(x.shape[1] - k.shape[1]), 1) for x in f(self, k, v))

        return call

    wrap(patch, LORA[s.name].Prefix, s.call, wrapped)


@mutant("adapters", LOGITS, PREFIX, probe=BESIDE)
def prefix_at_the_place_of_the_first_token(patch: Patch, s: Side) -> None:
    """Tokens counted from 0 beside a prefix that isn't rotated: PEFT counts them from its length on."""

    def wrapped(f: Any) -> Any:
        def init(self: Any, *given: Any) -> None:
            f(self, *given)
            self.turn = None

        return init

    wrap(patch, LORA[s.name].Prefix, "__init__", wrapped)


@mutant("adapters", GRADIENTS, PREFIX, probe=BESIDE)
def prefix_keys_do_not_train(patch: Patch, s: Side) -> None:
    """Keys that stay as they are: their gradient is zero."""
    wrap(patch, LORA[s.name].Prefix, "turned", lambda f: lambda self: s.stop(f(self)) + 0 * f(self))


@mutant("adapters", CACHE, PREFIX, probe="adapter decode")
def prefix_lost_in_generation(patch: Patch, s: Side) -> None:
    """Decoding looks at the cache alone."""

    def wrapped(f: Any) -> Any:
        def step(self: Any, *given: Any) -> Any:
            prefix, self.attention.prefix = self.attention.prefix, None
            try:
                return f(self, *given)
            finally:
                self.attention.prefix = prefix

        return step

    wrap(patch, s.layers.Block, "decode", wrapped)


@mutant("adapters", LOGITS, BOTTLENECK, probe=BESIDE)
def bottleneck_without_its_residual(patch: Patch, s: Side) -> None:
    """up act(down y) in place of the sublayer's output, not beside it."""
    wrap(patch, LORA[s.name].Bottleneck, s.call, lambda f: lambda self, y: f(self, y) - y)


@mutant("adapters", LOGITS, BOTTLENECK, probe=BESIDE)
def bottleneck_without_its_activation(patch: Patch, s: Side) -> None:
    """up down y: of low rank, and linear."""
    wrap(patch, LORA[s.name].Bottleneck, "activate", lambda f: lambda self, x: x)


@mutant("adapters", LOGITS, BOTTLENECK, probe=BESIDE)
def bottleneck_with_the_exact_gelu(patch: Patch, s: Side) -> None:
    """erf for tanh."""
    gelu = {"torch": {"approximate": "none"}, "jax": {"approximate": False}}[s.name]
    wrap(patch, LORA[s.name].Bottleneck, "activate", lambda f: lambda self, x: s.nn.gelu(x, **gelu))


@mutant("adapters", INITIAL, BOTTLENECK, probe="adapter start")
def bottleneck_starts_away_from_the_base(patch: Patch, s: Side) -> None:
    """`up` drawn as `down` is."""

    def wrapped(f: Any) -> Any:
        def start(config: Any, tensors: Any) -> Any:
            found = f(config, tensors)
            return {n: found[n[:-2] + "down"].T.copy() if n.endswith("adapter.up") else found[n] for n in found}

        return start

    wrap(patch, s.trainer, "with_adapter", wrapped)


@mutant("adapters", CACHE, BOTTLENECK, probe="adapter decode")
def bottleneck_lost_in_generation(patch: Patch, s: Side) -> None:
    """Decoding takes the attention's matrices one by one, and goes past what stands behind them."""

    def wrapped(f: Any) -> Any:
        def step(self: Any, *given: Any) -> Any:
            adapter, self.attention.adapter = self.attention.adapter, None
            try:
                return f(self, *given)
            finally:
                self.attention.adapter = adapter

        return step

    wrap(patch, s.layers.Block, "decode", wrapped)

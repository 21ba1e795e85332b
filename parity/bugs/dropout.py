"""Bugs in dropout: its masks, its scale, and where it is at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch

import torchtrain.layers
from coretrain.adapters import targets
from parity.gates import (
    GRADIENTS,
    LOGITS,
    LOSS,
    MASKS,
)
from parity.mutants import (
    RECOMPUTED,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import JAX, TORCH, Side


@mutant("dropout", LOSS)
def dropout_stream_reused_across_updates(patch: Patch, s: Side) -> None:
    """A key that is never split: every update draws the same masks."""
    wrap(patch, targets, "dropout_keys", lambda f: lambda model, seed, update: f(model, seed, 0))


@mutant("dropout", LOSS)
def dropout_counts_rows_from_the_micro_batch(patch: Patch, s: Side) -> None:
    """Masks that depend on how the batch is split."""
    count_rows_from_the_micro_batch(patch, s)


def count_rows_from_the_micro_batch(patch: Patch, s: Side) -> None:
    """Row numbers of each micro-batch from 0, where its masks are cut out of the update's."""
    if s is TORCH:
        wrap(patch, s.layers.Dropout, "of", lambda f: lambda self, rows: from_zero(f(self, rows)))
    else:
        wrap(patch, s.step, "Dropout", lambda f: lambda keys, rows: from_zero(f(keys, rows)))


def from_zero(masks: Any) -> Any:
    """Masks whose rows begin at 0."""
    return type(masks)(masks.keys, masks.rows - masks.rows[0])


def _drop(patch: Patch, s: Side, change: Callable[..., Any]) -> None:
    """`change(drop, x, rate, dropout, site)` where dropout is at work."""

    def wrapped(f: Any) -> Any:
        def drop(x: Any, rate: float, dropout: Any, site: Any) -> Any:
            return x if rate == 0 or dropout is None else change(f, x, rate, dropout, site)

        return drop

    for module in (s.layers, s.model):  # blocks, and the embedding
        wrap(patch, module, "drop", wrapped)


@mutant("dropout", LOGITS)
def dropout_not_scaled(patch: Patch, s: Side) -> None:
    """What is kept isn't divided by 1 - rate."""
    _drop(patch, s, lambda f, x, rate, dropout, site: f(x, rate, dropout, site) * (1 - rate))


@mutant("dropout", LOGITS)
def dropout_mask_of_another_site(patch: Patch, s: Side) -> None:
    """Sites counted from 1."""
    _drop(patch, s, lambda f, x, rate, dropout, site: f(x, rate, dropout, (site + 1) % dropout.keys.shape[0]))


@mutant("dropout", LOGITS)
def embedding_not_dropped(patch: Patch, s: Side) -> None:
    """No dropout after the embedding."""

    def change(f: Any, x: Any, rate: float, dropout: Any, site: Any) -> Any:
        return x if isinstance(site, int) and site == 0 else f(x, rate, dropout, site)

    _drop(patch, s, change)


@mutant("dropout", MASKS)
def dropout_rate_in_8_bits(patch: Patch, s: Side) -> None:
    """The threshold rounded to a byte, as some kernels do."""
    patch.setattr(s.layers, "dropout_threshold", lambda rate: round(rate * 256) << 16)


@mutant("dropout", MASKS)
def dropout_of_whole_tokens(patch: Patch, s: Side) -> None:
    """One draw for all features of a token."""
    patch.setattr(s.layers, "FEATURE_STEP", 0)


@mutant("dropout", MASKS, sides=("torch",))
def dropout_hash_with_an_arithmetic_shift(patch: Patch, s: Side) -> None:
    """The sign bit drawn in: int32 for uint32."""
    patch.setattr(torchtrain.layers, "_shift_right", lambda x, bits: x >> bits)


@mutant("dropout", LOSS, probe="evaluation")
def dropout_in_evaluation(patch: Patch, s: Side) -> None:
    """model.eval() forgotten."""

    def always(f: Any) -> Any:
        def loss(model: Any, config: Any, batch: Any, scale: Any, dropout: Any = None) -> Any:
            # as arrays of the framework: a program that is traced finds them inside, it isn't given them
            masks = s.step.dropout_masks(config, 0, len(batch))
            masks = jax.tree.map(jnp.asarray, masks) if s is JAX else masks
            return f(model, config, batch, scale, dropout or masks)

        return loss

    patch.setitem(s.objective.OBJECTIVES, "cross_entropy", always(s.objective.cross_entropy_loss))


@mutant("dropout", GRADIENTS, RECOMPUTED, sides=("torch",))
def recomputed_with_another_mask(patch: Patch, s: Side) -> None:
    """Activation checkpoints that don't restore the random state: another mask in the backward pass."""

    def change(f: Any, x: Any, rate: float, dropout: Any, site: Any) -> Any:
        backward = torch._C._current_graph_task_id() != -1
        return f(x, rate, dropout, (site + 1) % dropout.keys.shape[0] if backward else site)

    _drop(patch, s, change)

"""Bugs in dropout: its masks, its scale, and where it is at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import torchtrain.model
import torchtrain.trainer
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
from parity.probes.sides import TORCH, Side


@mutant("dropout", LOSS)
def dropout_stream_reused_across_updates(patch: Patch, s: Side) -> None:
    """A key that is never split: every update draws the same masks."""
    wrap(patch, s.trainer, "dropout_keys", lambda f: lambda model, seed, update: f(model, seed, 0))


@mutant("dropout", LOSS)
def dropout_counts_rows_from_the_micro_batch(patch: Patch, s: Side) -> None:
    """Masks that depend on how the batch is split."""
    wrap(patch, s.trainer, "Dropout", lambda f: lambda keys, rows: f(keys, rows - rows[0]))


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
    patch.setattr(s.model, "dropout_threshold", lambda rate: round(rate * 256) << 16)


@mutant("dropout", MASKS)
def dropout_of_whole_tokens(patch: Patch, s: Side) -> None:
    """One draw for all features of a token."""
    patch.setattr(s.model, "FEATURE_STEP", 0)


@mutant("dropout", MASKS, sides=("torch",))
def dropout_hash_with_an_arithmetic_shift(patch: Patch, s: Side) -> None:
    """The sign bit drawn in: int32 for uint32."""
    patch.setattr(torchtrain.model, "_shift_right", lambda x, bits: x >> bits)


@mutant("dropout", LOSS, probe="evaluation")
def dropout_in_evaluation(patch: Patch, s: Side) -> None:
    """model.eval() forgotten."""

    def always(f: Any) -> Any:
        def loss(*args: Any) -> Any:
            *known, tokens, labels, scale, dropout = args
            keys = s.trainer.dropout_keys(known[1].model, 0, 0)
            keys, rows = (keys.view(np.int32), np.int32) if s is TORCH else (keys, np.uint32)
            mask = s.layers.Dropout(s.array(keys), s.array(np.arange(len(tokens), dtype=rows)))
            return f(*known, tokens, labels, scale, dropout or mask)

        return loss

    wrap(patch, s.trainer, "_loss", always)


@mutant("dropout", GRADIENTS, RECOMPUTED, sides=("torch",))
def recomputed_with_another_mask(patch: Patch, s: Side) -> None:
    """Activation checkpoints that don't restore the random state: another mask in the backward pass."""

    def change(f: Any, x: Any, rate: float, dropout: Any, site: Any) -> Any:
        backward = torch._C._current_graph_task_id() != -1
        return f(x, rate, dropout, (site + 1) % dropout.keys.shape[0] if backward else site)

    _drop(patch, s, change)

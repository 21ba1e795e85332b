"""No bugs: another way to the same numbers, which no gate may tell from the original."""

from __future__ import annotations

import math
from typing import Any

from parity.bugs.attention import change_attention, change_root
from parity.bugs.loss import change_loss
from parity.bugs.model import drop_bias
from parity.bugs.optimizer import change_step, configured
from parity.mutants import (
    BIASED,
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import TORCH, Side


@mutant("equivalent", None)
def finite_mask_value(patch: Patch, s: Side) -> None:
    """-1e30 for -inf where something is masked: its exponential is zero as well."""

    def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
        groups = q.shape[2] // k.shape[2]
        k, v = (s.xp.stack([x[:, :, h // groups] for h in range(q.shape[2])], 2) for x in (k, v))
        scores = s.xp.einsum("bthc,bshc->bhts", q, k) / math.sqrt(q.shape[-1])
        weights = s.nn.softmax(s.xp.where(mask[:, None], scores, -1e30), -1)
        return s.xp.einsum("bhts,bshc->bthc", weights, v)

    patch.setattr(s.attention, "masked_attention", masked)


@mutant("equivalent", None)
def key_bias_dropped_where_positions_are_learned(patch: Patch, s: Side) -> None:
    """Softmax cancels what is the same for all keys."""
    drop_bias(patch, s, "k")


@mutant("equivalent", None, LLAMA)
def rope_positions_all_one_later(patch: Patch, s: Side) -> None:
    """Rotary attention sees differences of positions only."""
    wrap(patch, s.model, "rotary_tables", lambda f: lambda m, length: tuple(table[1:] for table in f(m, length + 1)))


@mutant("equivalent", None)
def another_chunk_of_the_loss(patch: Patch, s: Side) -> None:
    """7 rows of logits at a time for 50."""
    change_loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels, v, 7, scale))


@mutant("equivalent", None)
def micro_batches_in_another_number(patch: Patch, s: Side) -> None:
    """Four micro-batches for two: gradients are added up in another order."""

    def init(f: Any) -> Any:
        def build(self: Any, config: Any, tensors: Any = None) -> None:
            f(self, config.changed(train__accumulation=4), tensors)

        return build

    wrap(patch, s.trainer.Trainer, "__init__", init)


@mutant("equivalent", None)
def queries_scaled_for_scores(patch: Patch, s: Side) -> None:
    """1 / sqrt(C) on the queries, as splash attention wants it."""
    change_attention(patch, s, lambda q, k, v: (q / math.sqrt(q.shape[-1]), k, v))
    change_root(patch, s, lambda c: 1.0)


@mutant("equivalent", None, LLAMA, probe="updates")
def decay_subtracted_for_multiplied(patch: Patch, s: Side) -> None:
    """p - lr x decay x p for p (1 - lr x decay), and back."""
    configured(patch, s, weight_decay=0.0)
    if s is TORCH:
        change_step(patch, s, lambda row, old, new, lr: new - lr * 0.1 * old if row.decay else new)
    else:
        change_step(patch, s, lambda row, old, new, lr: old * (1 - lr * 0.1) + (new - old) if row.decay else new)


@mutant("equivalent", None, BIASED, probe="updates")
def muon_on_the_tall_side(patch: Patch, s: Side) -> None:
    """Newton-Schulz without the transpose of tall matrices: dearer, and the same polynomial of the matrix."""

    def orthogonalize(x: Any) -> Any:
        a, b, c = s.optimizer.NEWTON_SCHULZ
        x = x / s.xp.sqrt((x * x).sum((-2, -1), keepdims=True))
        for _ in range(5):
            square = x @ x.mT
            x = a * x + (b * square + c * (square @ square)) @ x
        return x

    patch.setattr(s.optimizer, "orthogonalize", orthogonalize)

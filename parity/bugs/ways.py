"""Bugs that depend on how the same thing is computed: layers scanned, micro-batches, recomputing, scores far down."""

from __future__ import annotations

from typing import Any

import jax

import jaxtrain.model
from parity.bugs.budgets import dtype_of
from parity.bugs.dropout import count_rows_from_the_micro_batch
from parity.gates import (
    DEEP,
    KERNEL_16,
    KERNEL_32,
    KEY_BIAS,
    LOGITS,
    SPLIT,
)
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import Side


@mutant("scan", LOGITS, sides=("jax",))
def layers_in_reverse_under_scan(patch: Patch, s: Side) -> None:
    """reverse=True left over from a backward scan; unrolled, as a CPU goes through a few layers, all is right."""

    def over(f: Any) -> Any:
        def layers(self: Any, layer: Any, x: Any, stacked: Any, indices: Any) -> Any:
            if not self.scan:
                return f(self, layer, x, stacked, indices)
            return jax.lax.scan(layer, x, (stacked, indices), reverse=True)

        return layers

    wrap(patch, jaxtrain.model.GPT, "_over_layers", over)


@mutant("scan", SPLIT, sides=("jax",))
def every_layer_drops_as_the_first_under_scan(patch: Patch, s: Side) -> None:
    """The index is left out of what is scanned over: all layers have one layer's dropout masks."""

    def over(f: Any) -> Any:
        def layers(self: Any, layer: Any, x: Any, stacked: Any, indices: Any) -> Any:
            inner = (lambda carry, item: layer(carry, (item[0], 0 * item[1]))) if self.scan else layer
            return f(self, inner, x, stacked, indices)

        return layers

    wrap(patch, jaxtrain.model.GPT, "_over_layers", over)


@mutant("dropout", SPLIT)
def masks_by_the_row_in_its_micro_batch(patch: Patch, s: Side) -> None:
    """Each micro-batch's rows counted from 0: one stack's gradients depend on how many there are."""
    count_rows_from_the_micro_batch(patch, s)


def _masked(patch: Patch, s: Side, weigh: Any) -> None:
    """`weigh(scores, seen)` -> weights, between the two products of masked attention."""

    def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
        groups = q.shape[2] // k.shape[2]
        k, v = (s.xp.stack([x[:, :, h // groups] for h in range(q.shape[2])], 2) for x in (k, v))
        scores = s.xp.einsum("bthc,bshc->bhts", q, k) * q.shape[-1] ** -0.5
        return s.xp.einsum("bhts,bshc->bthc", s.cast(weigh(scores, mask[:, None]), dtype_of(v)), v)

    patch.setattr(s.attention, "masked_attention", masked)


@mutant("kernels", DEEP)
def mask_of_minus_ten_thousand(patch: Patch, s: Side) -> None:
    """A finite mask value as in BERT: where all that may be seen scores below it, the future gets all the weight."""
    _masked(patch, s, lambda scores, seen: s.nn.softmax(s.xp.where(seen, scores, -1e4), -1))


@mutant("kernels", KEY_BIAS)
def softmax_with_one_in_its_denominator(patch: Patch, s: Side) -> None:
    """An attention sink: scores count for themselves and not only against each other, and so does a key bias."""

    def weigh(scores: Any, seen: Any) -> Any:
        weights = s.xp.where(seen, s.xp.exp(scores), 0)
        return weights / (1 + weights.sum(-1, keepdims=True))

    _masked(patch, s, weigh)


@mutant("kernels", KERNEL_32)
def scores_in_bfloat16_passes(patch: Patch, s: Side) -> None:
    """The default precision of a TPU's products, in attention alone."""

    def narrow(f: Any) -> Any:
        def compute(q: Any, k: Any, v: Any, mask: Any) -> Any:
            q, k = (s.rounded(x, "bfloat16") if dtype_of(q) == "float32" else x for x in (q, k))
            return f(q, k, v, mask)

        return compute

    wrap(patch, s.attention, "masked_attention", narrow)


@mutant("kernels", KERNEL_16)
def attention_in_float8(patch: Patch, s: Side) -> None:
    """q, k and v cut to e4m3's three bits, where bfloat16 was asked for."""

    def narrow(f: Any) -> Any:
        def compute(q: Any, k: Any, v: Any, mask: Any) -> Any:
            q, k, v = (s.rounded(x, "float8_e4m3fn") if dtype_of(x) == "bfloat16" else x for x in (q, k, v))
            return f(q, k, v, mask)

        return compute

    wrap(patch, s.attention, "masked_attention", narrow)

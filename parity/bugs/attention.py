"""Bugs in attention and rotary positions."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from parity.gates import GRADIENTS, KERNEL_64, LOGITS
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.pair import VARIANTS, make_config
from parity.probes.sides import Side


def change_root(patch: Patch, s: Side, change: Callable[[float], float]) -> None:
    """`change(C)` for sqrt(C) in the scale of the scores."""
    patch.setattr(s.attention, "math", types.SimpleNamespace(sqrt=change))


@mutant("model", LOGITS, tap="blocks.0.attention")
def attention_scale_off_by_a_millionth(patch: Patch, s: Side) -> None:
    """1 / sqrt(C), a millionth off."""
    change_root(patch, s, lambda c: math.sqrt(c) * (1 + 1e-6))


@mutant("model", LOGITS, tap="blocks.0.attention")
def attention_scale_in_float32(patch: Patch, s: Side) -> None:
    """The scale made in float32 inside a float64 path."""
    change_root(patch, s, lambda c: float(np.float32(math.sqrt(c))))


@mutant("model", LOGITS, tap="blocks.0.attention")
def attention_scale_of_the_whole_width(patch: Patch, s: Side) -> None:
    """1 / sqrt(D) for 1 / sqrt(C)."""
    change_root(patch, s, lambda c: math.sqrt(4 * c))


def _mask(patch: Patch, s: Side, diagonal: int) -> None:
    def masked(f: Any) -> Any:
        def compute(q: Any, k: Any, v: Any, mask: Any) -> Any:
            seen = np.tril(np.ones(mask.shape, bool), diagonal)
            return f(q, k, v, s.array(seen))

        return compute

    wrap(patch, s.attention, "masked_attention", masked)


@mutant("model", LOGITS, tap="blocks.0.attention")
def next_token_is_seen(patch: Patch, s: Side) -> None:
    """tril with a diagonal of 1."""
    _mask(patch, s, 1)


@mutant("model", LOGITS, tap="blocks.0.attention")
def own_token_is_hidden(patch: Patch, s: Side) -> None:
    """A strict inequality in the mask."""
    _mask(patch, s, -1)


@mutant("model", KERNEL_64)
def mask_aligned_top_left(patch: Patch, s: Side) -> None:
    """is_causal where there are more keys than queries: torch aligns the mask at the top left."""
    plain = s.attention.KERNELS["plain"]

    def compute(q: Any, k: Any, v: Any) -> Any:
        seen = np.tril(np.ones((q.shape[0], q.shape[1], k.shape[1]), bool))
        return s.attention.masked_attention(q, k, v, s.array(seen))

    patch.setitem(s.attention.KERNELS, "plain", dataclasses.replace(plain, compute=compute))


@mutant("model", LOGITS, LLAMA, "blocks.0.attention")
def attention_in_float32(patch: Patch, s: Side) -> None:
    """A hard-coded float32 softmax inside a float64 path."""

    def masked(f: Any) -> Any:
        def compute(q: Any, k: Any, v: Any, mask: Any) -> Any:
            return s.cast(f(*(s.cast(x, "float32") for x in (q, k, v)), mask), "float64")

        return compute

    wrap(patch, s.attention, "masked_attention", masked)


def change_attention(patch: Patch, s: Side, change: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> None:
    """`change` on q, k, v before attention."""
    wrap(patch, s.layers, "attention", lambda f: lambda kernel, q, k, v, *more: f(kernel, *change(q, k, v), *more))


@mutant("model", LOGITS, LLAMA, "blocks.0.attention")
def key_heads_tiled(patch: Patch, s: Side) -> None:
    """repeat for repeat_interleave: key head h mod K serves query head h."""

    def tile(q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
        heads = [h % k.shape[2] for h in range(q.shape[2])]
        return q, s.xp.stack([k[:, :, h] for h in heads], 2), s.xp.stack([v[:, :, h] for h in heads], 2)

    change_attention(patch, s, tile)


@mutant("model", GRADIENTS, LLAMA, "cotangent of blocks.1.k_rotated")
def keys_without_gradient(patch: Patch, s: Side) -> None:
    """A detach that was meant for a cache."""
    change_attention(patch, s, lambda q, k, v: (q, s.stop(k) + 0 * k, v))


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_interleaved(patch: Patch, s: Side) -> None:
    """GPT-J's pairs (0, 1), (2, 3) for Llama's halves."""

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        first, second = x[..., ::2], x[..., 1::2]
        cos, sin = cos[..., None, :], sin[..., None, :]
        return s.xp.stack([first * cos - second * sin, second * cos + first * sin], -1).reshape(x.shape)

    patch.setattr(s.layers, "rotate", rotate)


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_base_off_in_its_8th_digit(patch: Patch, s: Side) -> None:
    """Base 10000.001 for 10000."""
    change = {"rope_theta": 10000.001}
    wrap(patch, s.model, "rotary_tables", lambda f: lambda m, length: f(m.model_copy(update=change), length))


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_tables_in_float32(patch: Patch, s: Side) -> None:
    """Angles kept in float32, as transformers does."""

    def tables(f: Any) -> Any:
        return lambda m, length: tuple(t.astype(np.float32).astype(np.float64) for t in f(m, length))

    wrap(patch, s.model, "rotary_tables", tables)


@mutant("model", LOGITS, LLAMA, "blocks.0.k_rotated")
def rope_of_keys_one_position_late(patch: Patch, s: Side) -> None:
    """Keys rotated by the next position's angle, as after a cache that counts from 1."""
    kv = make_config(VARIANTS[LLAMA]).model.kv

    def late(f: Any) -> Any:
        def rotate(x: Any, cos: Any, sin: Any) -> Any:
            return f(x, *((s.xp.roll(t, -1, 0) for t in (cos, sin)) if x.shape[-2] == kv else (cos, sin)))

        return rotate

    wrap(patch, s.layers, "rotate", late)


@mutant("model", LOGITS, LLAMA, "blocks.0.q_rotated")
def rope_turns_the_other_way(patch: Patch, s: Side) -> None:
    """The sign of the sine."""
    wrap(patch, s.layers, "rotate", lambda f: lambda x, cos, sin: f(x, cos, -sin))

"""Bugs in linear layers, residual stream, embedding and head."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

from coretrain.contract.taps import tap
from parity.bugs.norms import set_fields
from parity.gates import GRADIENTS, LOGITS
from parity.mutants import (
    BIASED,
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.model import LOGITS_32
from parity.probes.sides import TORCH, Side

_PARTS = ("q", "k", "v", "out", "gate", "up", "down")


def _linear(patch: Patch, s: Side, part: str, change: Callable[[Any, Any], Any]) -> None:
    """`change(layer, y)` on the output of every linear layer called `part`."""

    def named(f: Any) -> Any:
        def call(self: Any, *args: Any) -> Any:
            for name in _PARTS:
                if getattr(self, name, None) is not None:
                    set_fields(getattr(self, name), part=name)
            return f(self, *args)

        return call

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any, *more: Any) -> Any:
            y = f(self, x, *more)
            return change(self, y) if self.part == part else y

        return call

    wrap(patch, s.layers.Attention, "heads", named)
    wrap(patch, s.layers.MLP, s.call, named)
    wrap(patch, s.layers.Linear, s.call, forward)


def drop_bias(patch: Patch, s: Side, part: str) -> None:
    _linear(patch, s, part, lambda layer, y: y - s.parameter(layer.bias))


@mutant("model", LOGITS, tap="blocks.0.v")
def value_bias_dropped(patch: Patch, s: Side) -> None:
    """A bias that the conversion forgot; initial weights hide it."""
    drop_bias(patch, s, "v")


@mutant("model", LOGITS, tap="blocks.0.q")
def query_bias_dropped(patch: Patch, s: Side) -> None:
    """A bias that the conversion forgot; initial weights hide it."""
    drop_bias(patch, s, "q")


@mutant("model", LOGITS, tap="blocks.0.down")
def bias_of_the_mlp_dropped(patch: Patch, s: Side) -> None:
    """A bias that the conversion forgot; initial weights hide it."""
    drop_bias(patch, s, "down")


@mutant("model", LOGITS, tap="blocks.0.out")
def output_bias_added_twice(patch: Patch, s: Side) -> None:
    """A bias inside the matmul's epilogue and once more after it."""
    _linear(patch, s, "out", lambda layer, y: y + s.parameter(layer.bias))


@mutant("model", LOGITS, BIASED, "blocks.0.k")
def key_bias_dropped_where_positions_rotate(patch: Patch, s: Side) -> None:
    """With rotary positions a key bias counts: softmax cancels it only where it is the same for all keys."""
    drop_bias(patch, s, "k")


@mutant("model", LOGITS, LLAMA, "blocks.0.up")
def matmul_in_float32(patch: Patch, s: Side) -> None:
    """One matmul whose result type is hard-coded."""
    _linear(patch, s, "up", lambda layer, y: s.rounded(y, "float32"))


@mutant("model", LOGITS_32, LLAMA)
def matmuls_in_bfloat16_passes(patch: Patch, s: Side) -> None:
    """The default matmul precision of a GPU or a TPU, in a float32 run."""

    def forward(f: Any) -> Any:
        def call(self: Any, x: Any, *more: Any) -> Any:
            return f(self, s.rounded(x, "bfloat16") if str(x.dtype).endswith("float32") else x, *more)

        return call

    wrap(patch, s.layers.Linear, s.call, forward)


@mutant("model", LOGITS, tap="blocks.0.residual1")
def residual_branches_scaled_in_the_forward_pass(patch: Patch, s: Side) -> None:
    """1 / sqrt(2 L), which belongs into the first weights, applied to the branches."""

    def scaled(f: Any) -> Any:
        def drop(x: Any, rate: float, dropout: Any, site: Any) -> Any:
            y = f(x, rate, dropout, site)
            return y if isinstance(site, int) and site == 0 else 0.5 * y

        return drop

    wrap(patch, s.layers, "drop", scaled)


def _block(patch: Patch, s: Side, change: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`change(x, normed, residual1, norm2)` -> (what the residual adds to, what norm2 gets), without dropout."""

    def call(self: Any, x: Any, rotary: Any, *more: Any) -> Any:
        normed = tap("blocks.#.norm1", self.norm1(x))
        stream, _ = change(x, normed, None, None)
        first = tap("blocks.#.residual1", stream + self.attention(normed, rotary))
        _, into = change(x, normed, first, self.norm2)
        return tap("blocks.#.residual2", first + self.mlp(tap("blocks.#.norm2", self.norm2(into))))

    patch.setattr(s.layers.Block, s.call, call)


@mutant("model", LOGITS, LLAMA, "blocks.0.residual1")
def residual_from_the_normed_stream(patch: Patch, s: Side) -> None:
    """x = norm(x) written over the residual stream."""
    _block(patch, s, lambda x, normed, first, norm2: (normed, first))


@mutant("model", LOGITS, LLAMA, "blocks.0.norm2")
def attention_and_mlp_in_parallel(patch: Patch, s: Side) -> None:
    """GPT-J's block: the MLP reads the block's input."""
    _block(patch, s, lambda x, normed, first, norm2: (x, x))


def _embed(patch: Patch, s: Side, change: Callable[[Any, Any, Any, Any], Any]) -> None:
    """`change(embed, model, tokens, position)` in place of the embedding."""

    def embed(f: Any) -> Any:
        return lambda self, tokens, position: change(functools.partial(f, self), self, tokens, position)

    wrap(patch, s.model.GPT, "_embed", embed)


@mutant("model", LOGITS, tap="embed")
def embedding_times_root_of_width(patch: Patch, s: Side) -> None:
    """Gemma's and T5's habit."""
    _embed(patch, s, lambda f, model, tokens, position: f(tokens, position) * math.sqrt(model.config.width))


@mutant("model", LOGITS, tap="embed")
def positions_count_from_1(patch: Patch, s: Side) -> None:
    """fairseq's offset in the table of positions."""
    _embed(patch, s, lambda f, model, tokens, position: f(tokens, s.xp.roll(position, -1, 0)))


@mutant("model", LOGITS, tap="embed")
def last_id_out_of_range(patch: Patch, s: Side) -> None:
    """A vocabulary one too small: JAX clamps an id that is out of range, without a word."""
    _embed(patch, s, lambda f, model, tokens, position: f(tokens.clip(None, model.config.vocabulary - 2), position))


def _head(patch: Patch, s: Side, change: Callable[[Any, Any], Any]) -> None:
    """`change(model, weight)` in place of the output head."""
    original = s.model.GPT.head_weight.fget
    patch.setattr(s.model.GPT, "head_weight", property(lambda self: change(self, original(self))))


@mutant("model", GRADIENTS, tap="gradient of embed.token")
def tied_head_untied(patch: Patch, s: Side) -> None:
    """A copy of the embedding as head: the logits are right, and the head's share of the gradient is lost."""
    if s is TORCH:  # a sparse gradient of the embedding's own would have nothing dense to be added into
        wrap(patch, F, "embedding", lambda f: lambda tokens, weight, sparse=False: f(tokens, weight))
    _head(patch, s, lambda model, weight: s.stop(weight))


@mutant("model", LOGITS, LLAMA, "logits")
def untied_head_tied(patch: Patch, s: Side) -> None:
    """tie_word_embeddings at its default."""
    _head(patch, s, lambda model, weight: s.parameter(model.embed.token) + 0 * weight)


@mutant("model", LOGITS, LLAMA, "logits")
def logits_in_float32(patch: Patch, s: Side) -> None:
    """logits.float(), which in float64 is a downcast."""

    def logits(self: Any, hidden: Any) -> Any:
        weight = self.head_weight[: self.config.vocabulary]
        return tap("logits", s.rounded(hidden @ weight.T, "float32"))

    patch.setattr(s.model.GPT, "logits", logits)

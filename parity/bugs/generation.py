"""Bugs in the cache, in positions and in sampling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coretrain.contract import decoding
from coretrain.contract.randomness import uniforms
from coretrain.contract.sampling import PaddedPrompts, Sampling
from parity.gates import CACHE, SAMPLES
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import Side


def _decoded(patch: Patch, s: Side, change: Callable[..., tuple[Any, Any]]) -> None:
    """`change(tokens, positions, mask)` -> (positions, mask) of a decoding step."""

    def step(f: Any) -> Any:
        def call(self: Any, tokens: Any, positions: Any, mask: Any, cache: Any, at: Any) -> Any:
            return f(self, tokens, *change(tokens, positions, mask), cache, at)

        return call

    wrap(patch, *((s.model.GPT, "decode") if s.name == "torch" else (s.decode.Decoder, "step")), step)


@mutant("generation", CACHE)
def cache_slot_off_by_one(patch: Patch, s: Side) -> None:
    """A new token's keys overwrite the last one's."""

    def step(f: Any) -> Any:
        def call(self: Any, x: Any, rotary: Any, mask: Any, keys: Any, values: Any, at: Any) -> Any:
            return f(self, x, rotary, mask, keys, values, at - 1 if x.shape[1] == 1 else at)

        return call

    wrap(patch, s.layers.Block, "decode", step)


@mutant("generation", CACHE)
def position_of_a_new_token_off_by_one(patch: Patch, s: Side) -> None:
    """Positions counted from 1 once the prompt is in the cache."""
    _decoded(patch, s, lambda tokens, pos, mask: (pos + 1 if tokens.shape[1] == 1 else pos, mask))


@mutant("generation", CACHE, LLAMA)
def rotary_position_of_a_new_token_off_by_one(patch: Patch, s: Side) -> None:
    """Positions counted from 1 once the prompt is in the cache."""
    _decoded(patch, s, lambda tokens, pos, mask: (pos + 1 if tokens.shape[1] == 1 else pos, mask))


@mutant("generation", CACHE)
def positions_count_left_padding(patch: Patch, s: Side) -> None:
    """arange over a left-padded batch."""

    def change(tokens: Any, positions: Any, mask: Any) -> tuple[Any, Any]:
        counted = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        return (s.array(counted) if tokens.shape[1] > 1 else positions), mask

    _decoded(patch, s, change)


@mutant("generation", CACHE)
def left_padding_is_seen(patch: Patch, s: Side) -> None:
    """No attention mask for a batch of unequal prompts."""

    def change(tokens: Any, positions: Any, mask: Any) -> tuple[Any, Any]:
        causal = np.broadcast_to(np.tril(np.ones(mask.shape[1:], bool)), mask.shape)
        return positions, s.array(causal) if tokens.shape[1] > 1 else mask

    _decoded(patch, s, change)


@mutant("generation", CACHE, probe="far")
def positions_above_256_off_by_one(patch: Patch, s: Side) -> None:
    """A counter of one byte: short prompts are right."""
    _decoded(patch, s, lambda tokens, pos, mask: (s.xp.where(pos > 256, pos + 1, pos), mask))


@mutant("generation", CACHE, LLAMA, probe="far")
def rotary_position_off_by_one_far_out(patch: Patch, s: Side) -> None:
    """Positions counted from 1 once the prompt is in the cache: far out greedy tokens can't see it."""
    _decoded(patch, s, lambda tokens, pos, mask: (pos + 1 if tokens.shape[1] == 1 else pos, mask))


@mutant("generation", CACHE, LLAMA, sides=("jax",), probe="far")  # torch makes its tables once, for both
def rotary_base_a_hundredth_high_in_the_cache(patch: Patch, s: Side) -> None:
    """Another base in decoding than in training."""

    def change(m: Any) -> Any:
        return m.model_copy(update={"rope_theta": m.rope_theta * 1.01})

    def step(f: Any) -> Any:
        def call(self: Any, *given: Any) -> Any:
            with pytest.MonkeyPatch.context() as inner:
                wrap(inner, s.model, "rotary_tables", lambda t: lambda m, length: t(change(m), length))
                return f(self, *given)

        return call

    wrap(patch, s.model.GPT, "decode_start", step)


@mutant("generation", CACHE, probe="far")
def only_the_last_256_tokens_are_seen(patch: Patch, s: Side) -> None:
    """A sliding window that nobody asked for."""

    def change(tokens: Any, positions: Any, mask: Any) -> tuple[Any, Any]:
        if tokens.shape[1] > 1:
            return positions, mask
        seen = s.array(np.arange(mask.shape[-1]) >= mask.shape[-1] - 256)
        return positions, mask & seen

    _decoded(patch, s, change)


Choose = Callable[..., Any]
"""`choose_tokens`."""


@mutant("sampling", SAMPLES)
def temperature_after_top_p(patch: Patch, s: Side) -> None:
    """The nucleus is cut before the temperature changes the probabilities."""

    def choose(f: Choose) -> Choose:
        def chosen(logits: Any, sampling: Sampling, position: int, rows: Any) -> Any:
            if sampling.top_p == 1:
                return f(logits, sampling, position, rows)
            order = np.argsort(-logits, axis=-1, kind="stable")
            ranked = np.take_along_axis(logits, order, -1)
            if sampling.top_k:
                ranked[:, sampling.top_k :] = -np.inf
            weights = np.exp(ranked - ranked[:, :1])
            weights /= weights.sum(-1, keepdims=True)
            ranked[np.cumsum(weights, -1) - weights >= sampling.top_p] = -np.inf
            weights = np.exp((ranked - ranked[:, :1]) / sampling.temperature)
            cumulative = np.cumsum(weights, -1)
            draws = uniforms(sampling.seed, "sampling", position, len(logits))[:, None] * cumulative[:, -1:]
            return np.take_along_axis(order, (cumulative <= draws).sum(-1)[:, None], -1)[:, 0]

        return chosen

    wrap(patch, decoding, "choose_tokens", choose)


def _given_otherwise(patch: Patch, change: Callable[[Sampling, int, Any], tuple[Any, ...]]) -> None:
    """`change(sampling, position, rows)` gives what tokens are chosen by."""

    def choose(f: Choose) -> Choose:
        return lambda logits, sampling, position, rows: f(logits, *change(sampling, position, rows))

    wrap(patch, decoding, "choose_tokens", choose)


@mutant("sampling", SAMPLES)
def same_random_number_every_step(patch: Patch, s: Side) -> None:
    """A key that is never split."""
    _given_otherwise(patch, lambda sampling, position, rows: (sampling, 0, rows))


@mutant("sampling", SAMPLES)
def top_k_off_by_one(patch: Patch, s: Side) -> None:
    """The k-th largest logit itself is cut, by a comparison that isn't strict."""

    def change(sampling: Sampling, position: int, rows: Any) -> tuple[Any, ...]:
        fewer = sampling.top_k - 1 if sampling.top_k else 0
        return dataclasses.replace(sampling, top_k=fewer), position, rows

    _given_otherwise(patch, change)


@mutant("sampling", SAMPLES)
def all_tokens_summed_by_falling_probability(patch: Patch, s: Side) -> None:
    """A sort where nothing asks for one: as likely, but another token for the same number."""

    def change(sampling: Sampling, position: int, rows: Any) -> tuple[Any, ...]:
        return dataclasses.replace(sampling, top_p=min(sampling.top_p, 1 - 2**-53)), position, rows

    _given_otherwise(patch, change)


@mutant("sampling", SAMPLES, probe="ends")
def numbers_keyed_by_the_place_in_the_batch(patch: Patch, s: Side) -> None:
    """A row's random numbers change when a row before it has left."""
    _given_otherwise(patch, lambda sampling, position, rows: (sampling, position, None))


@mutant("sampling", SAMPLES, probe="ends")
def numbers_drawn_one_after_the_other(patch: Patch, s: Side) -> None:
    """A generator that goes on from draw to draw: rows that have left draw no more."""
    drawn = [0]

    def change(sampling: Sampling, position: int, rows: Any) -> tuple[Any, ...]:
        first, drawn[0] = (0 if position == 0 else drawn[0]), (0 if position == 0 else drawn[0]) + len(rows)
        return sampling, 0, first + np.arange(len(rows))

    _given_otherwise(patch, change)


@mutant("sampling", SAMPLES, probe="ends")
def kept_rows_of_the_cache_exchanged(patch: Patch, s: Side) -> None:
    """A row goes on with another's keys and values: the cache is gathered in another order than the tokens."""

    def keep(f: Any) -> Any:
        def kept(cache: Any, places: Any) -> Any:
            order = np.roll(np.arange(len(places)), 1)
            found = f(cache, places)
            return s.layers.Cache(found.keys[:, order], found.values[:, order])

        return kept

    wrap(patch, s.decode, "keep_rows", keep)


@mutant("sampling", SAMPLES, probe="ends")
def first_rows_of_the_cache_kept(patch: Patch, s: Side) -> None:
    """The cache is cut to as many rows as go on, wherever they stood."""
    wrap(patch, s.decode, "keep_rows", lambda f: lambda cache, places: f(cache, np.arange(len(places))))


@mutant("sampling", SAMPLES, probe="ends")
def padding_of_rows_that_have_left(patch: Patch, s: Side) -> None:
    """The mask is still that of the first rows."""
    wrap(patch, PaddedPrompts, "of", lambda f: lambda self, places: f(self, np.arange(len(places))))

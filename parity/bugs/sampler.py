"""Bugs in what a sampler says of its own tokens: the log-probabilities from which a policy is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from coretrain.contract import decoding
from coretrain.contract.decoding import Sampled
from parity.gates import SAMPLED, SAMPLES
from parity.mutants import LLAMA, Patch, mutant, wrap
from parity.probes.sides import Side


def _noted(patch: Patch, change: Callable[..., Any]) -> None:
    """`change(f, logits, chosen, temperature)` in place of `chosen_logprobs`, which is `f`."""
    wrap(patch, decoding, "chosen_logprobs", lambda f: lambda *given: change(f, *given))


def _answers(patch: Patch, s: Side, change: Callable[[Sampled], Sampled]) -> None:
    """Every answer of `sample`, changed."""
    wrap(patch, decoding, "sample", lambda f: lambda *given: [change(row) for row in f(*given)])


@mutant("sampling", SAMPLED, probe="sampled")
def temperature_forgotten_in_log_probs(patch: Patch, s: Side) -> None:
    """Tokens are drawn at a temperature, their log-probabilities are at 1: the ratio isn't 1 at the first update."""
    _noted(patch, lambda f, logits, chosen, temperature: f(logits, chosen, 1.0))


@mutant("sampling", SAMPLED, probe="sampled")
def temperature_applied_twice_to_log_probs(patch: Patch, s: Side) -> None:
    """Logits that were divided already are divided again."""
    _noted(patch, lambda f, logits, chosen, temperature: f(logits / temperature, chosen, temperature))


@mutant("sampling", SAMPLES, probe="sampled")
def temperature_applied_twice_to_the_draw(patch: Patch, s: Side) -> None:
    """Logits are divided before they are handed to what divides them."""

    def choose(f: Any) -> Any:
        return lambda logits, sampling, position, rows: f(logits / sampling.temperature, sampling, position, rows)

    wrap(patch, decoding, "choose_tokens", choose)


@mutant("sampling", SAMPLED, probe="sampled")
def log_probs_of_the_row_beside(patch: Patch, s: Side) -> None:
    """The rows that go on are scored by their places in a batch of all: right until one has left."""

    def change(f: Any, logits: Any, chosen: Any, temperature: float) -> Any:
        shifted = logits if len(logits) == 9 else np.roll(logits, 1, 0)
        return f(shifted, chosen, temperature)

    _noted(patch, change)


@mutant("sampling", SAMPLED, probe="sampled")
def end_without_a_log_prob(patch: Patch, s: Side) -> None:
    """The id that ends an answer is no token of it: nothing ever teaches the model to stop."""
    _answers(
        patch,
        s,
        lambda row: dataclasses.replace(row, logprobs=[*row.logprobs[:-1], 0.0] if row.ended else row.logprobs),
    )


@mutant("sampling", SAMPLES, probe="sampled")
def end_left_out_of_an_answer(patch: Patch, s: Side) -> None:
    """As text has it: the answer without the id that ended it."""
    _answers(
        patch,
        s,
        lambda row: Sampled(row.ids[:-1], row.logprobs[:-1], True) if row.ended else row,
    )


@mutant("sampling", SAMPLED, probe="sampled")
def log_probs_of_the_token_before(patch: Patch, s: Side) -> None:
    """Off by one: each token has the log-probability of the one before it."""
    _answers(patch, s, lambda row: dataclasses.replace(row, logprobs=[0.0, *row.logprobs[:-1]]))


@mutant("sampling", SAMPLED, probe="sampled")
def log_probs_in_float32(patch: Patch, s: Side) -> None:
    """A softmax in float32 of logits in float64."""
    _noted(
        patch, lambda f, logits, chosen, temperature: f(logits, chosen, temperature).astype(np.float32).astype(float)
    )


@mutant("sampling", SAMPLED, probe="sampled")
def log_probs_after_top_k(patch: Patch, s: Side) -> None:
    """The sampler's are of the 50 likeliest tokens, the trainer's of all."""

    def change(f: Any, logits: Any, chosen: Any, temperature: float) -> Any:
        least = np.partition(logits, -50)[:, -50:-49]
        return f(np.where(logits < least, -np.inf, logits), chosen, temperature)

    _noted(patch, change)


@mutant("sampling", SAMPLES, probe="sampled")
def seed_without_the_row(patch: Patch, s: Side) -> None:
    """All rows draw the same number: a group of one prompt has one answer, and no advantage."""

    def choose(f: Any) -> Any:
        return lambda logits, sampling, position, rows: f(logits, sampling, position, np.zeros_like(rows))

    wrap(patch, decoding, "choose_tokens", choose)


@mutant("sampling", SAMPLED, probe="sampled")
def prompts_told_apart_by_padded_ids(patch: Patch, s: Side) -> None:
    """Padding has an id that a prompt may begin with: two that differ share their keys and values."""

    def shared(f: Any) -> Any:
        return lambda prompts: f(dataclasses.replace(prompts, first=np.zeros_like(prompts.first)))

    wrap(patch, s.decode, "shared_prompts", shared)


@mutant("sampling", SAMPLED, probe="sampled")
def groups_taken_to_lie_together(patch: Patch, s: Side) -> None:
    """The keys and values of each prompt are repeated, as if the rows of a group stood one after the other."""

    def shared(f: Any) -> Any:
        def found(prompts: Any) -> Any:
            places, which = f(prompts)
            return places, np.sort(which)

        return found

    wrap(patch, s.decode, "shared_prompts", shared)


def _prefill(patch: Patch, s: Side) -> None:
    def step(f: Any) -> Any:
        def call(self: Any, tokens: Any, positions: Any, mask: Any, cache: Any, at: Any) -> Any:
            counted = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
            return f(self, tokens, s.array(counted) if tokens.shape[1] > 1 else positions, mask, cache, at)

        return call

    wrap(patch, *((s.model.GPT, "decode") if s.name == "torch" else (s.decode.Decoder, "step")), step)


@mutant("sampling", SAMPLED, probe="sampled")
def learned_positions_under_left_padding(patch: Patch, s: Side) -> None:
    """The sampler's positions count the padding of a shorter prompt, the trainer's rows have none there."""
    _prefill(patch, s)


@mutant("sampling", SAMPLED, LLAMA, probe="sampled")
def rotary_positions_under_left_padding(patch: Patch, s: Side) -> None:
    """The sampler's positions count the padding of a shorter prompt: the prompt is apart from its answer."""
    _prefill(patch, s)

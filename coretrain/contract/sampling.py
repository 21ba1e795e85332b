"""From logits to the next token, on the host: both stacks hand their logits here, so that they choose alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.contract.randomness import uniforms


@dataclass(frozen=True)
class Sampling:
    """How to choose: temperature 0 is greedy; top_k 0 and top_p 1 keep every token."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise UserError(
                "contract/temperature-negative",
                f"temperature {self.temperature:g} is below 0: give 0 for greedy, about 0.8 for variety",
            )
        if not math.isfinite(self.temperature):
            raise UserError(
                "contract/temperature-not-finite",
                f"temperature {self.temperature} is no finite number: give 0 for greedy, about 0.8 for variety",
            )
        if self.top_k < 0:
            raise UserError("contract/top-k-negative", f"top-k {self.top_k} is below 0: give 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise UserError(
                "contract/top-p-outside-range", f"top-p {self.top_p:g} is not in (0, 1]: give 1 for all tokens"
            )


def choose_tokens(logits: NDArray[np.floating], sampling: Sampling, position: int) -> NDArray[np.int64]:
    """One token a row from logits [B, V], by inverse cumulative probability of one uniform number a row.

    Tokens are ordered by falling probability, ties by id; top-k is cut first, then top-p (the smallest set that
    reaches it). The number of row b is a pure function of (seed, position, b).
    """
    logits = np.asarray(logits, np.float64)
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(-1), np.int64)
    order = np.stack([_likeliest(row, sampling.top_k) for row in logits])
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a temperature near 0: no number remains, and the first is taken
        ranked = np.take_along_axis(logits, order, -1) / sampling.temperature
        weights = np.exp(ranked - ranked[:, :1])
    weights /= weights.sum(-1, keepdims=True)
    before = np.cumsum(weights, -1) - weights
    weights[before >= sampling.top_p] = 0
    cumulative = np.cumsum(weights, -1)
    draws = uniforms(sampling.seed, "sampling", position, len(logits))[:, None] * cumulative[:, -1:]
    chosen = (cumulative <= draws).sum(-1)
    picked = np.take_along_axis(order, np.minimum(chosen, logits.shape[1] - 1)[:, None], -1)
    return np.asarray(picked[:, 0], np.int64)


def _likeliest(logits: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits [V] (0: of all), the largest first, equal ones by id."""
    ids = np.arange(len(logits))
    if 0 < count < len(ids):  # sorting 50,000 takes as long as half a step of a small model
        ids = np.flatnonzero(~(logits < np.partition(logits, -count)[-count]))  # and whatever equals the last
    return ids[np.argsort(-logits[ids], kind="stable")][: count or None]


@dataclass(frozen=True)
class PaddedPrompts:
    """Prompts of unequal length, left-padded to one: tokens and positions [B, T], first real slot of each row [B]."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    first: NDArray[np.int64]

    def mask(self, start: int, stop: int, slots: int) -> NDArray[np.bool_]:
        """Mask [B, stop - start, slots] of the queries in slots [start, stop): own row's real slots, not the future."""
        slot = np.arange(slots)
        causal = slot <= np.arange(start, stop)[:, None]
        return causal & (slot >= self.first[:, None, None])


def pad_prompts(prompts: Sequence[Sequence[int]], vocab: int, context: int, tokens: int) -> PaddedPrompts:
    """Left-pad `prompts`; `UserError` for an empty prompt, an id outside the vocabulary, or too little context."""
    longest = max(map(len, prompts), default=0)
    if min(map(len, prompts), default=0) == 0:
        raise UserError(
            "contract/prompt-empty",
            "a prompt is empty: give at least one token, <|endoftext|> for a fresh document",
        )
    if longest + tokens > context:
        raise UserError(
            "contract/prompt-exceeds-context",
            f"a prompt of {longest} tokens and {tokens} new ones don't fit in model.context = {context}: "
            f"ask for at most {max(0, context - longest)} tokens, or shorten the prompt",
        )
    for prompt in prompts:
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise UserError(
                "contract/prompt-outside-vocabulary",
                f"a prompt has a token id outside the vocabulary of {vocab}: encode it with the run's own",
            )
    first = np.array([longest - len(prompt) for prompt in prompts])
    padded = np.array([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], np.int32)
    positions = np.maximum(np.arange(longest) - first[:, None], 0).astype(np.int32)
    return PaddedPrompts(padded, positions, first)

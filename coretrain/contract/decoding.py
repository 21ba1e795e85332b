"""The host's half of generation: which tokens are fed, what is chosen, when a row ends. A stack computes the logits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.contract.sampling import PaddedPrompts, Sampling, choose_tokens

Decode = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], int], NDArray[Any]]
"""(tokens [B, T], positions [B, T], mask [B, T, slots], first slot) -> logits [B, V] after the last token."""


def decode(
    prompts: PaddedPrompts,
    slots: int,
    tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    step: Decode,
    on_tokens: Callable[[NDArray[np.int64]], None] | None = None,
) -> list[list[int]]:
    """Up to `tokens` new ids after each prompt, each row ended by a `stop` id, which is left out.

    `step` is called with the prompts, then with one token for each row, and keeps keys and values in so many `slots`.
    `on_tokens` is called with each step's new ids [B], for streaming.
    """
    inputs, positions, at = prompts.tokens, prompts.positions, 0
    results: list[list[int]] = [[] for _ in inputs]
    ended = np.zeros(len(inputs), bool)
    for index in range(tokens):
        logits = step(inputs, positions, prompts.mask(at, at + inputs.shape[1], slots), at)
        chosen = choose_tokens(logits, sampling, index)
        ended |= np.isin(chosen, list(stop))
        for row in np.flatnonzero(~ended):
            results[row].append(int(chosen[row]))
        if ended.all():
            break
        if on_tokens:
            on_tokens(chosen)
        at += inputs.shape[1]
        inputs, positions = chosen[:, None].astype(np.int32), positions[:, -1:] + 1
    return results

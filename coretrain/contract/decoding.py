"""The host's half of generation: which tokens are fed, what is chosen, when a row ends. A stack computes the logits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.contract.sampling import PaddedPrompts, Sampling, choose_tokens

Decode = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], int], NDArray[Any]]
"""(tokens [B, T], positions [B, T], mask [B, T, slots], first slot) -> logits [B, V] after the last token."""
Keep = Callable[[NDArray[np.int64]], None]
"""From here on the batch, and so the cache, has the rows at these places [B'] alone, in their (rising) order."""


def decode(
    prompts: PaddedPrompts,
    slots: int,
    tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    step: Decode,
    keep: Keep,
    fewer: Callable[[int, int, int], int],
    on_tokens: Callable[[NDArray[np.int64]], None] | None = None,
) -> list[list[int]]:
    """Up to `tokens` new ids after each prompt, each row ended by a `stop` id, which is left out.

    `step` is called with the prompts, then with one token for each row, and keeps keys and values in so many `slots`.
    Rows that have ended leave the batch: `fewer` says how many rows the stack goes on with (given how many haven't
    ended, how many there are, and how many tokens at most are to come), and `keep` which. What a row is given (its
    tokens, positions, mask and random numbers) depends on no other row, so that a row's text is the same in any batch
    but for rounding, where a product of fewer rows is computed otherwise.
    `on_tokens` is called with each step's new ids [B] of all prompts, for streaming; a row that has ended repeats its
    last.
    """
    inputs, positions, at = prompts.tokens, prompts.positions, 0
    results: list[list[int]] = [[] for _ in inputs]
    rows = np.arange(len(inputs))  # which of the prompts are in the batch
    ended, last = np.zeros(len(inputs), bool), np.zeros(len(inputs), np.int64)
    for index in range(tokens):
        logits = step(inputs, positions, prompts.mask(at, at + inputs.shape[1], slots), at)
        places = np.flatnonzero(~ended[rows])
        last[rows[places]] = choose_tokens(logits[places], sampling, index, rows[places])
        ended |= np.isin(last, list(stop))
        for row in np.flatnonzero(~ended):
            results[row].append(int(last[row]))
        if ended.all():
            break
        if on_tokens:
            on_tokens(last.copy())
        at += inputs.shape[1]
        positions = positions[:, -1:] + 1
        going, left = int((~ended).sum()), tokens - index - 1
        size = fewer(going, len(rows), left) if left else len(rows)
        if size < len(rows):
            places = np.sort(np.argsort(ended[rows], kind="stable")[:size])  # some that have ended may fill it up
            keep(places)
            rows, prompts, positions = rows[places], prompts.of(places), positions[places]
        inputs = last[rows, None].astype(np.int32)
    return results

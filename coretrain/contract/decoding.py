"""The host's half of generation: which tokens are fed, what is chosen, when a row ends. A stack computes the logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.contract.sampling import PIECE, PaddedPrompts, Sampling, choose_tokens

Decode = Callable[[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_], int], NDArray[Any]]
"""(tokens [B, T], positions [B, T], mask [B, T, slots], first slot) -> logits [B, V] after the last token."""
Keep = Callable[[NDArray[np.int64]], None]
"""From here on the batch, and so the cache, has the rows at these places [B'] alone, in their (rising) order."""
Fewer = Callable[[int, int, int], int]
"""(rows that haven't ended, rows of the batch, tokens to come at most) -> rows that the stack goes on with."""
OnTokens = Callable[[NDArray[np.int64]], None]
"""Called with each step's new ids [B] of all prompts; a row that has ended repeats its last."""


@dataclass(frozen=True)
class Sampled:
    """A prompt's answer, token by token."""

    ids: list[int]
    """Its ids, with the id that ended it, if one did."""
    logprobs: list[float]
    """Of each of them, under the logits / temperature that it was drawn from, before top-k and top-p."""
    ended: bool
    """A stop id ended it; else it is as long as was asked for."""


def decode(
    prompts: PaddedPrompts,
    slots: int,
    tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    step: Decode,
    keep: Keep,
    fewer: Fewer,
    on_tokens: OnTokens | None = None,
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
    results: list[list[int]] = [[] for _ in prompts.tokens]
    ends = list(stop)

    def choose(
        logits: NDArray[Any], index: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        chosen = choose_tokens(logits, sampling, index, rows)
        ended = np.isin(chosen, ends)
        for row, token in zip(rows[~ended], chosen[~ended], strict=True):
            results[row].append(int(token))
        return chosen, ended

    _decoded(prompts, slots, tokens, choose, step, keep, fewer, on_tokens)
    return results


def sample(
    prompts: PaddedPrompts,
    slots: int,
    tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    step: Decode,
    keep: Keep,
    fewer: Fewer,
    numbers: NDArray[np.int64],
) -> list[Sampled]:
    """As `decode`, with the stop id and each id's log-probability (`chosen_logprobs`).

    Row b draws the random numbers of row `numbers[b]` (`row_numbers`), so that a row of a larger set of prompts says
    the same in whatever batch it stands.
    """
    results: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts.tokens]
    ends, done = list(stop), np.zeros(len(results), bool)

    def choose(
        logits: NDArray[Any], index: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        chosen = choose_tokens(logits, sampling, index, numbers[rows])
        _note(results, rows, chosen, chosen_logprobs(logits, chosen, sampling.temperature))
        done[rows] = np.isin(chosen, ends)
        return chosen, done[rows]

    _decoded(prompts, slots, tokens, choose, step, keep, fewer)
    return [Sampled(*row, bool(ended)) for row, ended in zip(results, done, strict=True)]


def replay(
    prompts: PaddedPrompts,
    slots: int,
    tokens: int,
    temperature: float,
    answers: Sequence[Sequence[int]],
    step: Decode,
    keep: Keep,
    fewer: Fewer,
) -> list[list[float]]:
    """The log-probabilities of `answers`, which `sample` gave for the same prompts and as many `tokens` asked for.

    The same steps over the same rows in the same order: on one device with the same weights they are equal bit for bit
    to what `sample` returned. `UserError` where an answer can't be `sample`'s.
    """
    lengths = np.array([len(answer) for answer in answers])
    if len(lengths) != len(prompts.tokens) or not len(lengths) or not 0 < lengths.min() <= lengths.max() <= tokens:
        raise UserError(
            "contract/answers-not-sampled",
            f"{len(lengths)} answers of {lengths.min(initial=tokens)} to {lengths.max(initial=0)} tokens can't be what "
            f"{len(prompts.tokens)} prompts were answered in at most {tokens}: give what sample returned, whole",
        )
    results: list[tuple[list[int], list[float]]] = [([], []) for _ in answers]

    def choose(
        logits: NDArray[Any], index: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        chosen = np.array([answers[row][index] for row in rows], np.int64)
        _note(results, rows, chosen, chosen_logprobs(logits, chosen, temperature))
        return chosen, lengths[rows] == index + 1

    _decoded(prompts, slots, tokens, choose, step, keep, fewer)
    return [logprobs for _, logprobs in results]


def chosen_logprobs(logits: NDArray[np.floating], chosen: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """log softmax(logits / temperature)[chosen] of each row of logits [B, V], in float64: the one place that makes it.

    Of temperature 0, which always takes the likeliest id, they are those at temperature 1.
    """
    found, divisor = np.empty(len(logits)), temperature or 1.0
    some = max(1, PIECE // logits.shape[-1])  # rows of a small vocabulary go together
    for first in range(0, len(logits), some):
        rows = logits[first : first + some]
        largest, total = rows.max(-1).astype(np.float64), list[NDArray[np.float64]]()
        for start in range(0, logits.shape[-1], PIECE):  # as much as the processor has at hand
            rest = np.subtract(rows[:, start : start + PIECE], largest[:, None], dtype=np.float64)
            with np.errstate(over="ignore"):  # a temperature near 0
                rest /= divisor
            total.append(np.exp(rest, out=rest).sum(-1))
        with np.errstate(over="ignore"):
            own = (rows[np.arange(len(rows)), chosen[first : first + some]] - largest) / divisor
        for place, parts in enumerate(zip(*total, strict=True)):
            found[first + place] = own[place] - math.log(math.fsum(parts))
    return found


def shared_prompts(prompts: PaddedPrompts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places [U] of the different prompts, each where it first stands, and which of them each row has [B].

    A group of answers to one prompt needs its keys and values once.
    """
    found: dict[tuple[int, bytes], int] = {}
    places, which = list[int](), list[int]()
    for row, (first, tokens) in enumerate(zip(prompts.first.tolist(), prompts.tokens, strict=True)):
        key = (first, tokens.tobytes())
        if key not in found:
            found[key] = len(places)
            places.append(row)
        which.append(found[key])
    return np.array(places, np.int64), np.array(which, np.int64)


def row_numbers(numbers: Sequence[int] | None, rows: int) -> NDArray[np.int64]:
    """The numbers of so many rows, by default 0, 1, ... `UserError` unless they are as many, none of them below 0."""
    found = np.arange(rows) if numbers is None else np.array(numbers, np.int64).reshape(-1)
    if len(found) != rows or found.min(initial=0) < 0:
        raise UserError(
            "contract/row-numbers-wrong",
            f"{len(found)} numbers from {found.min(initial=0)} on can't be those of {rows} prompts: give each prompt "
            "its own, from 0 on, or none",
        )
    return found


def _note(
    results: list[tuple[list[int], list[float]]],
    rows: NDArray[np.int64],
    chosen: NDArray[np.int64],
    logprobs: NDArray[np.float64],
) -> None:
    """Put each row's new id and its log-probability behind its others."""
    for row, token, logprob in zip(rows.tolist(), chosen.tolist(), logprobs.tolist(), strict=True):
        results[row][0].append(token)
        results[row][1].append(logprob)


def _decoded(
    prompts: PaddedPrompts,
    slots: int,
    tokens: int,
    choose: Callable[[NDArray[Any], int, NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.bool_]]],
    step: Decode,
    keep: Keep,
    fewer: Fewer,
    on_tokens: OnTokens | None = None,
) -> None:
    """The steps of `decode`; `choose` is given the logits of rows that haven't ended, the step and the rows' numbers.

    It gives their next ids, and which of the rows these end.
    """
    inputs, positions, at = prompts.tokens, prompts.positions, 0
    rows = np.arange(len(inputs))  # which of the prompts are in the batch
    ended, last = np.zeros(len(inputs), bool), np.zeros(len(inputs), np.int64)
    for index in range(tokens):
        logits = step(inputs, positions, prompts.mask(at, at + inputs.shape[1], slots), at)
        places = np.flatnonzero(~ended[rows])
        going = rows[places]
        last[going], ended[going] = choose(logits[places], index, going)
        if ended.all():
            break
        if on_tokens:
            on_tokens(last.copy())
        at += inputs.shape[1]
        positions = positions[:, -1:] + 1
        count, left = int((~ended).sum()), tokens - index - 1
        size = fewer(count, len(rows), left) if left else len(rows)
        if size < len(rows):
            places = np.sort(np.argsort(ended[rows], kind="stable")[:size])  # some that have ended may fill it up
            keep(places)
            rows, prompts, positions = rows[places], prompts.of(places), positions[places]
        inputs = last[rows, None].astype(np.int32)

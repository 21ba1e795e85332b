"""From logits to the next token, on the host: both stacks hand their logits here, so that they choose alike."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.contract.randomness import uniforms

LN2 = 0.6931471805599453
STEPS = 64
"""A weight is a power of 2^(1 / STEPS) out of a table, times a short series for the rest of the exponent."""
BITS = 38
"""The likeliest token's weight is 2^BITS, and the least is 1."""
LOWEST = -(BITS + 2) * STEPS
"""An exponent, in steps, whose weight is 0."""
SERIES = tuple((LN2 / STEPS) ** n / math.factorial(n) for n in (1, 2, 3, 4))
PIECE = 2**14
"""Tokens whose weights are made at once: their sum, at most 2^52, is exact in float64 in any order."""
FIRST_TRIED = 64
"""Largest logits that are looked at first for top-p; where they don't reach it, eight times as many."""


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


def choose_tokens(
    logits: NDArray[np.floating], sampling: Sampling, position: int, rows: NDArray[np.integer] | None = None
) -> NDArray[np.int64]:
    """One token a row from logits [B, V], by inverse cumulative probability of one uniform number a row.

    The number of a row is a pure function of (seed, position, its number among the caller's prompts); `rows` [B] are
    those numbers, where they aren't 0 to B - 1. So a row's text depends neither on the rows beside it nor on where in
    the batch it stands.

    Where nothing is cut (top-k 0 or at least V, top-p 1), tokens are summed by id, which needs no sort. Otherwise they
    are ordered by falling probability, ties by id; top-k is cut first, then top-p (the smallest set that reaches it).
    What is summed are `token_weights`, whole numbers: the same logits and number give the same token on every
    processor. `UserError` where a row's largest logit is not a finite number.
    """
    logits = np.asarray(logits)
    largest = logits.max(-1)
    if not np.isfinite(largest).all():
        raise UserError(
            "contract/logits-not-finite",
            "the model's logits are not finite numbers, so that no token can be chosen: its weights have diverged, "
            "generate from an earlier checkpoint",
        )
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(-1), np.int64)
    places = np.arange(len(logits)) if rows is None else rows
    numbers = uniforms(sampling.seed, "sampling", position, int(places.max(initial=-1)) + 1)[places]
    cuts = 0 < sampling.top_k < logits.shape[1] or sampling.top_p < 1
    if not cuts and logits.shape[1] <= PIECE:
        return _choose_of_few(logits, sampling, numbers)
    choose = _choose_of_likeliest if cuts else _choose_of_all
    return np.array([choose(row, sampling, number) for row, number in zip(logits, numbers, strict=True)], np.int64)


def token_weights(logits: NDArray[np.floating], largest: float, temperature: float) -> NDArray[np.float64]:
    """2^BITS exp((logits - largest) / temperature), rounded to whole numbers, for logits [N].

    Made of float64 additions, products and roundings alone, each of which IEEE 754 fixes to the last bit: numpy's own
    exponential differs between processors.
    """
    rest = np.subtract(logits, largest, dtype=np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0
        rest *= min(STEPS / LN2 / temperature, 1e300)
    np.fmax(rest, LOWEST, out=rest)
    steps = np.rint(rest)
    rest -= steps
    weights: NDArray[np.float64] = SERIES[-1] * rest
    for coefficient in SERIES[-2::-1]:
        weights += coefficient
        weights *= rest
    weights += 1
    steps -= LOWEST
    weights *= np.take(_powers(), steps.astype(np.intp), out=rest, mode="clip")  # what else is buffered
    np.rint(weights, out=weights)
    return weights


@functools.cache
def _powers() -> NDArray[np.float64]:
    """2^(BITS + k / STEPS) for k from LOWEST, whose weight is 0, to 0: correctly rounded, from roots of integers."""
    roots = []
    for k in range(STEPS):
        power = 1 << (k + STEPS * 60)
        for _ in range(STEPS.bit_length() - 1):
            power = math.isqrt(power)
        roots.append(power * 2.0**-60)
    powers = [math.ldexp(roots[k % STEPS], BITS + k // STEPS) for k in range(LOWEST, 1)]
    return np.array([0.0, *powers[1:]])


def _choose_of_all(logits: NDArray[np.floating], sampling: Sampling, number: float) -> int:
    """The id at which the sum of all weights of logits [V], by id, passes the `number`th part of the whole."""
    near, sure = _nearly(logits, sampling.temperature, number)
    return near if sure else _exactly(logits, sampling, number)


def _choose_of_few(logits: NDArray[np.floating], sampling: Sampling, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """`_choose_of_all` of rows [B, V] of a vocabulary of one piece, as many together as the processor has at hand."""
    found, some = np.empty(len(logits), np.int64), max(1, PIECE // logits.shape[1])
    margin = (4 * logits.shape[1] + 4) * 2.0**-BITS
    for start in range(0, len(logits), some):
        part = logits[start : start + some]
        rest = np.subtract(part, part.max(-1, keepdims=True), dtype=np.float64)
        with np.errstate(over="ignore"):  # a temperature near 0
            rest /= sampling.temperature
        sums = np.cumsum(np.exp(rest, out=rest), -1)
        wanted = (numbers[start : start + some] * sums[:, -1])[:, None]
        at = np.minimum((sums <= wanted).sum(-1, keepdims=True), sums.shape[1] - 1)
        begin = np.where(at > 0, np.take_along_axis(sums, np.maximum(at - 1, 0), 1), 0.0)
        sure = (begin + margin < wanted) & (wanted < np.take_along_axis(sums, at, 1) - margin)
        found[start : start + some] = at[:, 0]
        for row in np.flatnonzero(~sure[:, 0]):
            found[start + row] = _exactly(part[row], sampling, float(numbers[start + row]))
    return found


def _nearly(logits: NDArray[np.floating], temperature: float, number: float) -> tuple[int, bool]:
    """The id by numpy's own exponentials, and whether it is sure that the weights give the same.

    In units of 2^-BITS a weight is within 1 of its exponential: 0.51 by its own rounding, and what processors make of
    an exponential is off by 2^-50 of it. Sums of V numbers add less than V by rounding. So every sum, the whole too, is
    within 2 V of the weights': farther than twice that from both ends of an id's part no rounding changes the id.
    """
    largest, pieces, ends = float(logits.max()), list[NDArray[np.float64]](), [0.0]
    for start in range(0, len(logits), PIECE):
        rest = np.subtract(logits[start : start + PIECE], largest, dtype=np.float64)
        with np.errstate(over="ignore"):  # a temperature near 0
            rest /= temperature
        pieces.append(np.exp(rest, out=rest))
        ends.append(ends[-1] + float(rest.sum()))
    wanted = number * ends[-1]
    found = min(bisect.bisect_right(ends, wanted), len(pieces)) - 1
    sums = np.cumsum(pieces[found])
    at = min(int(np.searchsorted(sums, wanted - ends[found], "right")), len(sums) - 1)
    begin, end = ends[found] + (float(sums[at - 1]) if at else 0.0), ends[found] + float(sums[at])
    margin = (4 * len(logits) + 4) * 2.0**-BITS
    return found * PIECE + at, begin + margin < wanted < end - margin


def _exactly(logits: NDArray[np.floating], sampling: Sampling, number: float) -> int:
    """As `_choose_of_all`, by the weights themselves, which takes five times as long."""
    pieces = list(_pieces(logits, sampling.temperature))
    ends = list(itertools.accumulate(int(piece.sum()) for piece in pieces))
    drawn = _drawn(number, ends[-1])
    found = bisect.bisect_right(ends, drawn)
    before = ends[found - 1] if found else 0
    return found * PIECE + int(np.searchsorted(np.cumsum(pieces[found]), drawn - before, "right"))


def _pieces(logits: NDArray[np.floating], temperature: float) -> Iterator[NDArray[np.float64]]:
    """The weights of logits [V], so many at a time as the processor has at hand."""
    largest = float(logits.max())
    for start in range(0, len(logits), PIECE):
        yield token_weights(logits[start : start + PIECE], largest, temperature)


def _choose_of_likeliest(logits: NDArray[np.floating], sampling: Sampling, number: float) -> int:
    """The id at which the sum of the weights that top-k and top-p leave, the largest first, passes the `number`th part
    of theirs."""
    V, largest, total = len(logits), float(logits.max()), 0
    count = min(sampling.top_k or V, V)
    if count == V:  # top-p alone: how much it asks for, all tokens say; how many give that is tried
        total = sum(int(piece.sum()) for piece in _pieces(logits, sampling.temperature))
        count = min(FIRST_TRIED, V)
    while True:
        ids = _likeliest(logits, count)
        sums = np.cumsum(token_weights(logits[ids], largest, sampling.temperature).astype(np.int64))
        wanted = sampling.top_p * (total or int(sums[-1]))
        if not total or sums[-1] >= wanted or count == V:
            break
        count = min(8 * count, V)
    kept = sums[: 1 + int(np.searchsorted(sums[:-1], wanted, "left"))]
    return int(ids[np.searchsorted(kept, _drawn(number, int(kept[-1])), "right")])


def _drawn(number: float, total: int) -> int:
    """The whole number in [0, total) that `number` in (0, 1) stands for."""
    return min(math.floor(number * total), total - 1)


def _likeliest(logits: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits [V], the largest first, equal ones by id."""
    ids = np.arange(len(logits))
    if count < len(ids):  # sorting 50,000 takes as long as half a step of a small model
        ids = np.flatnonzero(~(logits < np.partition(logits, -count)[-count]))  # and whatever equals the last
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


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

    def wider(self, columns: int) -> PaddedPrompts:
        """With so many more columns of padding."""
        tokens, positions = (np.pad(part, ((0, 0), (columns, 0))) for part in (self.tokens, self.positions))
        return PaddedPrompts(tokens, positions, self.first + columns)

    def of(self, places: NDArray[np.int64]) -> PaddedPrompts:
        """Some of the rows."""
        return PaddedPrompts(self.tokens[places], self.positions[places], self.first[places])


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

"""Scores of continuations by a stack: rows of like length together, in few shapes, each different one once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coretrain.config.run import RunConfig
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import IGNORED, Batch
from coretrain.evaluation.requests import Continuation, Generation, Scored
from coretrain.evaluation.text import cut
from coretrain.tokenizers.tokenizer import Tokenizer

BUDGET = 2048
"""Tokens of a batch: beyond these a product is no quicker, and its memory grows."""


class Scores(Protocol):
    """What of a stack an evaluation needs (`coretrain.training.stack.Stack`)."""

    def token_scores(self, batch: Batch) -> NDArray[np.generic]:
        """Each label's log-probability, and 1 where no id is likelier, [B, T, 2]; 0 without a target."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt, ended early by a `stop` id."""


class Scorer:
    """A model behind `coretrain.evaluation.requests.Model`."""

    def __init__(
        self,
        stack: Scores,
        config: RunConfig,
        tokenizer: Tokenizer,
        budget: int = BUDGET,
        ends: Collection[int] | None = None,
    ) -> None:
        """`budget` is how many tokens a batch may have, padding included; `ends` are ids that end an answer.

        Without these an answer ends where the tokenizer says.
        """
        self.stack, self.context, self.tokenizer, self.budget = stack, config.model.context, tokenizer, budget
        self.ends = tokenizer.ends if ends is None else ends

    def score(self, asked: Sequence[Continuation]) -> list[Scored]:
        """Of each continuation; the same in any order and company, but for rounding."""
        wanted = dict.fromkeys(asked)
        rows = [(cut(one, self.context), one) for one in wanted]
        rows.sort(key=lambda row: len(row[0][0]), reverse=True)
        found: dict[Continuation, Scored] = {}
        for width, some in self._batches(rows):
            count = 1 << (len(some) - 1).bit_length()
            scores = self.stack.token_scores(_batch([ids for ids, _ in some], width, count))
            for (ids, scored), one, row in zip(
                (each for each, _ in some), (each for _, each in some), scores, strict=False
            ):
                found[one] = _read(row[len(ids) - 1 - scored : len(ids) - 1], scored)
        return [found[one] for one in asked]

    def _batches(self, rows: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
        """Rows after rows, from the longest on, with the width that they are padded to."""
        start = 0
        while start < len(rows):
            width = min(self.context, widened(len(rows[start][0][0]) - 1))
            stop = start + self._rows(width)
            yield width, rows[start:stop]
            start = stop

    def _rows(self, width: int) -> int:
        """A power of two, so that JAX compiles few programs."""
        return 1 << (max(1, self.budget // width).bit_length() - 1)

    def generate(self, asked: Sequence[Generation]) -> list[str]:
        """The likeliest continuation of each prompt, up to a text of `until`, which is left out.

        A prompt that leaves no room loses its beginning.
        """
        order = sorted(range(len(asked)), key=lambda index: (asked[index].tokens, len(asked[index].prompt)))
        answers, start = [""] * len(asked), 0
        while start < len(order):
            tokens = asked[order[start]].tokens
            some = [index for index in order[start : start + 16] if asked[index].tokens == tokens]
            room = max(1, self.context - tokens)
            prompts = [asked[index].prompt[-room:] for index in some]
            budget = min(tokens, self.context - 1)
            rows = self.stack.generate(prompts, budget, Sampling(0.0, 0, 1.0, 0), self.ends)
            for index, ids in zip(some, rows, strict=True):
                answers[index] = ended(self.tokenizer.decode(ids), asked[index].until)
            start += len(some)
        return answers


def widened(tokens: int) -> int:
    """The length that so many tokens are padded to: at most a quarter more beyond 64, and few different ones."""
    step = max(16, 1 << max(0, tokens.bit_length() - 3))
    return -(-tokens // step) * step


def ended(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of `until`."""
    places = [text.find(stop) for stop in until if stop in text]
    return text[: min(places)] if places else text


def _batch(rows: Sequence[tuple[tuple[int, ...], int]], width: int, count: int) -> Batch:
    """Rows [count, width]: each row's ids in front, its last ids the targets."""
    tokens = np.zeros((count, width), np.int32)
    labels = np.full((count, width), IGNORED, np.int32)
    for place, (ids, scored) in enumerate(rows):
        end = len(ids) - 1
        tokens[place, :end] = ids[:-1]
        labels[place, end - scored : end] = ids[-scored:]
    return Batch(tokens, labels)


def _read(row: NDArray[Any], scored: int) -> Scored:
    logprobs = row[:, 0].astype(np.float64)
    return Scored(float(logprobs.sum()), bool(row[:, 1].all()), scored)

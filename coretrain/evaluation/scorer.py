"""Scores of continuations by a stack: each different one once, beginnings that are shared once, in few shapes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from coretrain.config.run import RunConfig
from coretrain.contract.branches import Branches
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import IGNORED, Batch
from coretrain.evaluation.branches import Row, branches, grouped, told
from coretrain.evaluation.requests import Continuation, Generation, Scored
from coretrain.evaluation.text import cut
from coretrain.tokenizers.tokenizer import Tokenizer

One = TypeVar("One")

BUDGET = 2048
"""Tokens of a batch: beyond these a product is no quicker, and its memory grows."""

PIECE = 16
"""Tokens of an answer after which it is first looked through for a text that ends it."""


class Scores(Protocol):
    """What of a stack an evaluation needs (`coretrain.training.stack.Stack`)."""

    def token_scores(self, batch: Batch) -> NDArray[np.generic]:
        """Each label's log-probability, and 1 where no id is likelier, [B, T, 2]; 0 without a target."""

    def branch_scores(self, rows: Branches) -> NDArray[np.generic]:
        """The same of each label of rows whose beginnings are shared, [P, 2]."""

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
        shares: bool = True,
    ) -> None:
        """`budget` is how many tokens a batch may have, padding included; `ends` are ids that end an answer.

        Without these an answer ends where the tokenizer says. Unless it `shares`, each continuation is a row of its
        own, which a stack on many devices divides among them.
        """
        self.stack, self.context, self.tokenizer, self.budget = stack, config.model.context, tokenizer, budget
        self.shares = shares
        self.ends = tokenizer.ends if ends is None else ends

    def score(self, asked: Sequence[Continuation]) -> list[Scored]:
        """Of each continuation; the same in any order and company, but for rounding."""
        wanted = list(dict.fromkeys(asked))
        rows = [cut(one, self.context) for one in wanted]
        found = dict(zip(wanted, self._shared(rows) if self.shares else self._plain(rows), strict=True))
        return [found[one] for one in asked]

    def _shared(self, rows: Sequence[Row]) -> list[Scored]:
        """Of rows of ids: those that begin alike are one row of the batch."""
        found: dict[int, Scored] = {}
        for width, groups in self._batches(grouped(rows, max(self.budget, self.context)), lambda group: group.width):
            labels = sum(rows[place][1] for group in groups for place in group.rows)
            shape = 1 << (len(groups) - 1).bit_length(), width
            scores = self.stack.branch_scores(branches(groups, rows, shape, widened(labels)))
            for place, part in told(groups, rows):
                found[place] = _read(scores[part], rows[place][1])
        return [found[place] for place in range(len(rows))]

    def _plain(self, rows: Sequence[Row]) -> list[Scored]:
        """Of rows of ids, each a row of the batch."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]), reverse=True)
        found: dict[int, Scored] = {}
        for widest, some in self._batches(order, lambda place: len(rows[place][0]) - 1):
            width = min(self.context, widest)  # a row alone has no more positions
            count = 1 << (len(some) - 1).bit_length()
            scores = self.stack.token_scores(_batch([rows[place] for place in some], width, count))
            for place, row in zip(some, scores, strict=False):
                ids, scored = rows[place]
                found[place] = _read(row[len(ids) - 1 - scored : len(ids) - 1], scored)
        return [found[place] for place in range(len(rows))]

    def _batches(self, lines: Sequence[One], length: Callable[[One], int]) -> Iterator[tuple[int, Sequence[One]]]:
        """Lines after lines, from the longest on, with the width that they are padded to."""
        start = 0
        while start < len(lines):
            width = widened(length(lines[start]))
            stop = start + self._rows(width)
            yield width, lines[start:stop]
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
            prompts = [list(asked[index].prompt[-room:]) for index in some]
            ends_at = [asked[index].until for index in some]
            for index, text in zip(some, self._answers(prompts, ends_at, min(tokens, self.context - 1)), strict=True):
                answers[index] = text
            start += len(some)
        return answers

    def _answers(self, prompts: Sequence[list[int]], ends_at: Sequence[Sequence[str]], tokens: int) -> list[str]:
        """Answers in pieces, each twice as long as the last; rows in which a text of `until` stands have ended."""
        answers: list[list[int]] = [[] for _ in prompts]
        going, piece, done = list(range(len(prompts))), PIECE if any(ends_at) else tokens, 0
        while going and done < tokens:
            piece = min(piece, tokens - done)
            given = [prompts[row] + answers[row] for row in going]
            found = self.stack.generate(given, piece, Sampling(0.0, 0, 1.0, 0), self.ends)
            for row, ids in zip(going, found, strict=True):
                answers[row] += ids
            full = [row for row, whole in zip(going, (len(ids) == piece for ids in found), strict=True) if whole]
            going = [row for row in full if not self._said(answers[row], ends_at[row])]
            piece, done = 2 * piece, done + piece
        return [ended(self.tokenizer.decode(ids), until) for ids, until in zip(answers, ends_at, strict=True)]

    def _said(self, ids: Sequence[int], until: Sequence[str]) -> bool:
        text = self.tokenizer.decode(ids)
        return any(stop in text for stop in until)


def widened(tokens: int) -> int:
    """The length that so many tokens are padded to: at most an eighth more beyond 128, and few different ones."""
    step = max(16, 1 << max(0, tokens.bit_length() - 4))
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

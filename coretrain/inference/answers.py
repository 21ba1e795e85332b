"""What is asked of an engine, and what comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.contract.decoding import chosen_logprobs
from coretrain.contract.sampling import Sampling

Reason = Literal["stop", "length", "cancelled", "error"]


class EngineFull(UserError):
    """As many requests wait as may; another may be taken later."""


@dataclass(frozen=True)
class Token:
    """One token of an answer, or of a prompt."""

    id: int
    logprob: float | None = None
    """log softmax of all the vocabulary's logits, in float64, at temperature 1; None where it wasn't asked for."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest ids with theirs, the likeliest first, equal ones by id."""


@dataclass
class Answer:
    """What an engine made of a request."""

    tokens: list[Token] = field(default_factory=list)
    """The answer's, without the id that ended it."""
    reason: Reason = "length"
    stopped_by: int | None = None
    """The stop id that ended it."""
    error: Exception | None = None
    """What went wrong, where `reason` is error: a `UserError`, or what a callback raised, or a fault."""
    prompt: list[Token] = field(default_factory=list)
    """The prompt's tokens, where their log-probabilities were asked for; the first has none."""
    prompt_tokens: int = 0
    reused: int = 0
    """Tokens of the prompt whose keys and values an earlier request had left."""
    first: float = 0.0
    """Seconds from the request to its first token, or to its end where there is none."""
    seconds: float = 0.0
    """From the request to its end."""

    @property
    def ids(self) -> list[int]:
        """The answer's ids."""
        return [token.id for token in self.tokens]


@dataclass(frozen=True)
class Asked:
    """A request as it was given."""

    prompt: tuple[int, ...]
    sampling: Sampling
    tokens: int
    stop: frozenset[int]
    logprobs: int | None
    prompt_logprobs: int | None
    number: int
    """Which random numbers it draws: those of this row of a set of prompts."""
    adapter: str | None
    on_token: Callable[[Token], None] | None
    on_end: Callable[[Answer], None] | None


class Handle:
    """A request that is waiting, being answered, or done."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.answer, self.began = asked, Answer(prompt_tokens=len(asked.prompt)), time.monotonic()
        self.cancelled = False
        self._done = threading.Event()

    @property
    def done(self) -> bool:
        """Whether the answer is whole."""
        return self._done.is_set()

    def cancel(self) -> None:
        """End it at the next step; from any thread, at any time, and more than once."""
        self.cancelled = True

    def wait(self, timeout: float | None = None) -> Answer:
        """The answer, when it is whole. Raises `TimeoutError` after so many seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer in {timeout:g} s")
        return self.answer

    def say(self, token: Token) -> None:
        """For the engine: one more token."""
        if not self.answer.tokens:
            self.answer.first = time.monotonic() - self.began
        self.answer.tokens.append(token)
        if self.asked.on_token:
            self.asked.on_token(token)

    def end(self, reason: Reason, error: Exception | None = None) -> None:
        """For the engine: nothing more comes. What `on_end` raises has nobody left to be told."""
        if self.done:
            return
        answer = self.answer
        answer.reason, answer.error, answer.seconds = reason, error, time.monotonic() - self.began
        answer.first = answer.first if answer.tokens else answer.seconds
        try:
            if self.asked.on_end:
                self.asked.on_end(answer)
        except Exception as fault:
            answer.error = answer.error or fault
        finally:
            self._done.set()


def tokens_with(logits: NDArray[Any], ids: Sequence[int], top: int | None) -> list[Token]:
    """Tokens `ids` [B] with their log-probabilities under logits [B, V], and the `top` likeliest; None: without."""
    if top is None:
        return [Token(id) for id in ids]
    chosen = np.array(ids, np.int64)
    own = chosen_logprobs(logits, chosen, 1.0)
    found = []
    for row, (id, logprob) in enumerate(zip(ids, own.tolist(), strict=True)):
        best = likeliest(logits[row], top)
        # all are of one sum: what their logits differ by, added to the chosen one's
        rest = (logits[row, best].astype(np.float64) - float(logits[row, id]) + logprob).tolist()
        found.append(Token(id, logprob, tuple(zip(best.tolist(), rest, strict=True))))
    return found


def likeliest(logits: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits [V], the largest first, equal ones by id."""
    ids = np.arange(len(logits))
    if count == 0:
        return ids[:0]
    if count < len(ids):
        ids = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
    return ids[np.argsort(-logits[ids], kind="stable")][:count]

"""What an evaluation asks of a model, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Continuation:
    """Ids that are scored, given others before them."""

    context: tuple[int, ...]
    """At least one id: where there is no text, the id that begins a document."""
    ids: tuple[int, ...]
    """At least one id."""


@dataclass(frozen=True)
class Scored:
    """What a model says of a continuation."""

    logprob: float
    """Sum of the ids' log-probabilities, in nats."""
    greedy: bool
    """At each place no id is likelier than the continuation's."""
    tokens: int
    """Ids that were scored: fewer than were asked for where the continuation alone is longer than the context."""


@dataclass(frozen=True)
class Generation:
    """A prompt that is gone on with, by the likeliest ids."""

    prompt: tuple[int, ...]
    until: tuple[str, ...]
    """Texts that end an answer and are left out, beside the tokenizer's own ends."""
    tokens: int
    """Of the answer, at most."""


class Model(Protocol):
    """What answers."""

    def score(self, asked: Sequence[Continuation]) -> list[Scored]:
        """Of each continuation, in their order."""

    def generate(self, asked: Sequence[Generation]) -> list[str]:
        """An answer to each prompt, in their order."""

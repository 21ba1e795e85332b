"""A source of batches whose evaluations also look at what the model answers, where a task can tell right from wrong.

A loss says what a model thinks of given answers. What it answers itself may be another matter: a DPO run can have its
loss fall, and every pair right, while the model forgets how to answer (likelihood displacement, Razin 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from coretrain.alignment.answering import Answering
from coretrain.alignment.sources import Source
from coretrain.data.batch import Batch


class Judged:
    """`source`, with the rewards of sampled answers of at most `tokens` among the figures of its evaluations."""

    def __init__(self, source: Source, answering: Answering, tokens: int) -> None:
        self.source, self.answering, self.tokens = source, answering, tokens
        self.shown: list[dict[str, Any]] = []

    @property
    def follows_weights(self) -> bool:
        """As its source's."""
        return self.source.follows_weights

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Its source's."""
        return self.source.batches(start, stop)

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Its source's evaluation, with figures of the answers to held-out prompts."""
        loss, figures = self.source.evaluate()
        more, self.shown = self.answering.examine(self.tokens, 1.0)
        return loss, {**figures, **more}

    def answers(self) -> Sequence[Mapping[str, Any]]:
        """What the last evaluation's prompts were answered."""
        return self.shown

    def figures(self) -> dict[str, float]:
        """Its source's."""
        return self.source.figures()

    def fault(self) -> str:
        """Its source's."""
        return self.source.fault()

    def state(self) -> dict[str, Any]:
        """Its source's: answers change nothing."""
        return self.source.state()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Its source's."""
        return self.source.arrays()

    def load(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Its source takes up what was kept."""
        self.source.load(state, arrays)

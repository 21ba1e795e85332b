"""Running text and conversations as a source of batches: the data order, and the loss of the validation set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from coretrain.data.batches import validation_batches, validation_bytes_per_token
from coretrain.data.held_out import held_out_batches, scored_bytes
from coretrain.data.splits import Data
from coretrain.training.stack import Stack


class Text:
    """The batches of a stack's own loader, which depend on nothing but the data order: no state is to be kept."""

    follows_weights = False

    def __init__(self, config: RunConfig, stack: Stack, data: Data) -> None:
        self.config, self.stack, self.data = config, stack, data

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Global batches of the indices [start, stop) of the data order."""
        return self.stack.batches(self.data, start, stop)

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """Validation loss in nats a token, and bits per byte; both also of each named set."""
        total, weight = 0.0, 0.0
        for batch in validation_batches(self.data, self.config):
            total += self.stack.evaluate(batch)
            weight += batch.target_weight
        loss = total / weight
        bits = loss / math.log(2) / validation_bytes_per_token(self.data, self.config)
        return loss, {"bits_per_byte": bits, **self._sets()}

    def _sets(self) -> dict[str, float]:
        """`loss/NAME` and `bits_per_byte/NAME` of each set: sums over all its rows, however its batches are cut."""
        told = dict[str, float]()
        for one in self.data.sets:
            nats, targets = 0.0, 0.0
            for batch in held_out_batches(one, self.config):
                nats += self.stack.evaluate(batch)
                targets += batch.target_weight
            told[f"loss/{one.name}"] = nats / targets
            told[f"bits_per_byte/{one.name}"] = nats / math.log(2) / self._bytes[one.name]
        return told

    @cached_property
    def _bytes(self) -> dict[str, int]:
        """Bytes of text in each set's labels."""
        batches = {one.name: held_out_batches(one, self.config) for one in self.data.sets}
        return {name: scored_bytes(cut, self.data.tokenizer) for name, cut in batches.items()}

    def figures(self) -> dict[str, float]:
        """None beside those of the update itself."""
        return {}

    def answers(self) -> Sequence[Mapping[str, Any]]:
        """None are sampled."""
        return ()

    def fault(self) -> str:
        """None."""
        return ""

    def state(self) -> dict[str, Any]:
        """None: a batch is a pure function of its index."""
        return {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """None."""
        return {}

    def load(self, state: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Nothing to take up."""

"""A split of prompts: which there are, and one by its number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.data.batch import IGNORED, Batch
from coretrain.data.prompts.encode import BYTES, DROPPED, decoded
from coretrain.data.shards import Shard
from coretrain.data.splits import Split


class PromptSplit(Split):
    """A split whose windows are prompts."""

    def __init__(self, name: str, shards: Sequence[Shard], vocab: int) -> None:
        """`vocab` is the tokenizer's."""
        super().__init__(name, shards)
        self.vocab = vocab

    def __reduce__(self) -> tuple[Any, ...]:
        return PromptSplit, (self.name, self.shards, self.vocab)

    def like(self, shards: Sequence[Shard]) -> Split:
        """A split of the same kind over other shards."""
        return PromptSplit(self.name, shards, self.vocab)

    @cached_property
    def _documents(self) -> npt.NDArray[np.int64]:
        """Shard, first fact's place and end of every document, int64 [n, 3]."""
        found = []
        for number, shard in enumerate(self.shards):
            stops = shard.ends().astype(np.int64) - 1  # without the end of text
            starts = np.concatenate([[0], stops[:-1] + 1]).astype(np.int64)
            found.append(np.stack([np.full(len(stops), number, np.int64), starts, stops], 1))
        return np.concatenate([np.empty((0, 3), np.int64), *found])

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        """Those that weren't dropped."""
        documents = self._documents
        return documents[documents[:, 2] - documents[:, 1] > 1]

    def __len__(self) -> int:
        return len(self._rows)

    def windows(self, context: int) -> int:
        """How many prompts there are."""
        return len(self)

    def prompt(self, number: int) -> tuple[list[int], dict[str, Any]]:
        """Ids of prompt `number`, the head of its answer included, and the fields of its row."""
        if not 0 <= number < len(self):
            raise IndexError(f"prompt {number} of {len(self)} in {self.name}")
        shard, start, stop = self._rows[number]
        return decoded(np.asarray(self._map(shard)[start:stop]), self.vocab)

    def read(self, window: int, context: int) -> Batch:
        """A prompt as a row of arrays [T] without any target."""
        ids, _ = self.prompt(window)
        tokens = np.zeros(context, np.int32)
        tokens[: len(ids)] = ids
        return Batch(tokens, np.full(context, IGNORED, np.int32))

    def describe(self) -> str:
        """How many prompts there are, of which lengths, in words."""
        lengths = sorted({len(self.prompt(number)[0]) for number in range(min(len(self), 1000))})
        spread = " to ".join(map(str, dict.fromkeys((*lengths[:1], *lengths[-1:]))))
        sample = " (of the first 1,000)" if len(self) > 1000 and len(lengths) > 1 else ""
        return f"{len(self):,} prompts of {spread or 0} tokens{sample}" + self.dropped()

    def dropped(self) -> str:
        """How many prompts were dropped, and why, in words; nothing where none was."""
        counts: Counter[int | None] = Counter()
        for shard, start, stop in self._documents:
            if stop - start < 2:
                counts[int(self._map(shard)[start]) - self.vocab if stop > start else None] += 1
        assert all(fact is None or 0 <= fact < BYTES for fact in counts)
        reasons = [f"{counts[fact]:,} {reason}" for fact, reason in DROPPED.items() if counts[fact]]
        return f"; prompts dropped: {', '.join(reasons)}" if reasons else ""

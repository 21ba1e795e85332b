"""Prepared data opened for training: splits over shards, parts with weights."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.data.batch import Batch, windows
from coretrain.data.order import Stage
from coretrain.data.shards import Shard
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.tokenizer import Tokenizer


class Split:
    """The tokens of one split, over all its shards one after another; cheap to send to another process."""

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        self.name = name
        self.shards = tuple(shards)
        self.tokens = sum(shard.tokens for shard in shards)
        self.documents = sum(shard.documents for shard in shards)
        self.bytes = sum(shard.text_bytes for shard in shards)
        self._starts = [0, *accumulate(shard.tokens for shard in shards)]
        self._ids: list[npt.NDArray[Any] | None] = [None] * len(self.shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return Split, (self.name, self.shards)  # a pickled memory map would carry its whole content

    def like(self, shards: Sequence[Shard]) -> Split:
        """A split of the same kind over other shards."""
        return Split(self.name, shards)

    def describe(self) -> str:
        """Its size in words."""
        return f"{self.tokens:,} tokens, {self.documents:,} documents, {self.bytes_per_token:.2f} bytes a token"

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text a token, `<|endoftext|>` counted as a token of no bytes."""
        return self.bytes / self.tokens

    def windows(self, context: int) -> int:
        """How many windows of `context` inputs there are; 0 where the split is too short for one."""
        return max(0, (self.tokens - 1) // context)

    def read(self, window: int, context: int) -> Batch:
        """Row i, of arrays [T]: of tokens[i x T : i x T + T + 1] the first T are inputs, the last T labels."""
        start = window * context
        if not 0 <= start <= self.tokens - context - 1:
            raise IndexError(f"window {window} of {self.windows(context)} in {self.name}")
        row = np.empty(context + 1, np.int32)
        filled, number = 0, bisect_right(self._starts, start) - 1
        while filled <= context:
            offset = start + filled - self._starts[number]
            piece = self._map(number)[offset : offset + context + 1 - filled]
            row[filled : filled + len(piece)] = piece
            filled, number = filled + len(piece), number + 1
        return windows(row)

    def _map(self, number: int) -> npt.NDArray[Any]:
        ids = self._ids[number]
        if ids is None:
            ids = self._ids[number] = self.shards[number].ids()
        return ids


@dataclass(frozen=True)
class Part:
    """One source of the data, prepared: its share of the rows and its splits."""

    source: str
    weight: float
    folder: Path
    fingerprint: str
    train: Split
    validation: Split
    unread: tuple[str, ...] = ()
    """Fields of its rows that nothing reads."""
    corpus: str = ""
    """The fingerprint of what `twintrain corpus` made, if it is that."""


@dataclass(frozen=True)
class HeldOut:
    """A named set that is evaluated: a part's validation split, or one of `data.validation`."""

    name: str
    source: str
    split: Split
    fingerprint: str


@dataclass(frozen=True)
class Data:
    """Everything that training reads. One part, or several with weights (a mixture)."""

    tokenizer: Tokenizer
    parts: tuple[Part, ...]
    template: Template | None = None
    """That of the conversations, where these are what is trained on: batches are packed rows then."""
    passed_over: tuple[str, ...] = ()
    """Files in the sources' folders that aren't read, in words."""
    stages: tuple[Stage, ...] = ()
    """When the parts' weights change, and to what."""
    sets: tuple[HeldOut, ...] = ()
    """What is evaluated beside the validation split: each part of a mixture, and the sets of `data.validation`."""
    replayed: bool = False
    """Whether the first part is `data.replay`."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of tokenizer and shards; of the parts' hashes, weights and stages for a mixture."""
        if len(self.parts) == 1:
            return self.parts[0].fingerprint
        lines = [f"{part.fingerprint} {part.weight!r}" for part in self.parts]
        lines += [f"{stage.start} {stage.weights!r}" for stage in self.stages]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def train(self) -> Split:
        """The training tokens, all parts one after another."""
        return self.parts[0].train.like([shard for part in self.parts for shard in part.train.shards])

    @cached_property
    def validation(self) -> Split:
        """The validation tokens, all parts one after another."""
        return self.parts[0].validation.like([shard for part in self.parts for shard in part.validation.shards])

    @property
    def weights(self) -> tuple[float, ...]:
        """The parts' shares of the rows."""
        return tuple(part.weight for part in self.parts)

    def shares(self, weights: Sequence[float]) -> str:
        """The parts with their shares of the rows by these weights, in words."""
        return told_shares([part.source for part in self.parts], weights, self.replayed)

    def summary(self) -> list[tuple[str, str]]:
        """Lines to show: (label, value)."""
        names = self.shares(self.weights) if len(self.parts) > 1 else self.parts[0].source
        name, vocab = self.tokenizer.name, self.tokenizer.vocab
        any_unread = any(part.unread for part in self.parts)
        return [
            ("source", names),
            *((f"from update {stage.start + 1:,}", self.shares(stage.weights)) for stage in self.stages),
            *(("corpus", f"fingerprint {part.corpus[:16]}") for part in self.parts if part.corpus),
            ("tokenizer", f"{name}, {vocab:,} tokens ({self.tokenizer.fingerprint[:12]})"),
            *(("not read", words) for words in self.passed_over),
            *([("template", self.template.name)] if self.template else []),
            *((split.name, split.describe()) for split in (self.train, self.validation)),
            *((f"set {one.name}", f"{one.source}: {one.split.describe()}") for one in self.sets),
            *([("not read", _listed(sorted({name for part in self.parts for name in part.unread})))] * any_unread),
            ("fingerprint", self.fingerprint[:16]),
            ("cache", ", ".join(str(part.folder) for part in self.parts)),
        ]


def told_shares(sources: Sequence[str], weights: Sequence[float], replayed: bool) -> str:
    """Sources that have a share of the rows, in words; where `replayed` the first is what is replayed."""
    names = [f"{name} (replay)" if replayed and not n else name for n, name in enumerate(sources)]
    there = [(weight, name) for weight, name in zip(weights, names, strict=True) if weight]
    return ", ".join(f"{weight / sum(weights):.1%} {name}" for weight, name in there)


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "fields of the rows: " + ", ".join(names[:most]) + more

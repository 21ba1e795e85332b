"""Prepared data opened for training: splits, windows, global batches, validation batches."""

from __future__ import annotations

import hashlib
import json
import operator
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from coretrain.config import RunConfig
from coretrain.data.files import write_atomically
from coretrain.data.order import parts_at, rows_of_update
from coretrain.data.prepare import SPLITS, prepared_folder, read_manifest, trained_tokenizer
from coretrain.data.shards import AGAIN, Shard, read_shard
from coretrain.data.sources import open_source
from coretrain.data.template import Template
from coretrain.data.tokenizer import Tokenizer, load_tokenizer, named_tokenizer
from coretrain.errors import UserError

Tokens = npt.NDArray[np.int32]
IGNORED = -100
"""Label of a position that is no target, as the stacks' losses have it."""
ALWAYS_HASHED = 2**30
VERIFIED = "verified.json"


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

    def read(self, window: int, context: int) -> Tokens:
        """Window i: tokens[i x T : i x T + T + 1], int32 [T+1]; the first T are inputs, the last T labels."""
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
        return row

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


@dataclass(frozen=True)
class Data:
    """Everything that training reads. One part, or several with weights (a mixture)."""

    tokenizer: Tokenizer
    parts: tuple[Part, ...]
    template: Template | None = None
    """That of the conversations, where these are what is trained on: batches are packed rows then."""

    @cached_property
    def fingerprint(self) -> str:
        """Hex hash of tokenizer and shards; of the parts' hashes and weights for a mixture."""
        if len(self.parts) == 1:
            return self.parts[0].fingerprint
        lines = [f"{part.fingerprint} {part.weight!r}" for part in self.parts]
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

    def summary(self) -> list[tuple[str, str]]:
        """Lines to show: (label, value)."""
        total = sum(self.weights)
        names = [
            part.source if len(self.parts) == 1 else f"{part.weight / total:.1%} {part.source}" for part in self.parts
        ]
        name, vocab = self.tokenizer.name, self.tokenizer.vocab
        return [
            ("source", ", ".join(names)),
            ("tokenizer", f"{name}, {vocab:,} tokens ({self.tokenizer.fingerprint[:12]})"),
            *([("template", self.template.name)] if self.template else []),
            *((split.name, split.describe()) for split in (self.train, self.validation)),
            ("fingerprint", self.fingerprint[:16]),
            ("cache", ", ".join(str(part.folder) for part in self.parts)),
        ]


def open_data(config: RunConfig, say: Callable[[str], None] = print) -> Data:
    """Open the data of a run, prepared first where the cache lacks it; `say` gets a line for each slow step.

    Raises `UserError` for a source that is missing or too small, a damaged shard, a context longer than the data.
    """
    chosen = config.data.mixture or None
    names = [(part.source, part.weight) for part in chosen] if chosen else [(config.data.source, 1.0)]
    if config.data.format == "chat":
        from coretrain.data.conversations import open_conversations  # which imports this module

        return open_conversations(config, names, say)
    sources = [open_source(name, config.data.text_field) for name, _ in names]
    if config.data.tokenizer == "trained":
        tokenizer = trained_tokenizer(sources, config.data, say)
    else:
        tokenizer = named_tokenizer(config.data.tokenizer)
    parts = [
        open_part(prepared_folder(source, tokenizer, config.data, say), source.name, weight)
        for source, (_, weight) in zip(sources, names, strict=True)
    ]
    for part in parts:
        for split in (part.train, part.validation):
            if not split.windows(config.model.context):
                way_out = "" if split.name == "train" else " or raise data.validation_fraction"
                raise UserError(
                    f"model.context = {config.model.context} is longer than the {split.tokens} "
                    f"{split.name} tokens of {part.source}: lower it, give more text{way_out}"
                )
    return Data(tokenizer, tuple(parts))


def open_folder(folder: Path) -> Data:
    """Open one prepared folder by its path, without its source."""
    manifest = read_manifest(folder)
    return Data(load_tokenizer(folder), (open_part(folder, manifest["source"], 1.0),))


def open_part(folder: Path, source: str, weight: float, kind: Callable[[str, Sequence[Shard]], Split] = Split) -> Part:
    """One prepared folder, checked; its splits are of `kind`. Raises `UserError` naming a damaged file."""
    manifest = read_manifest(folder)
    splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for entry in manifest["shards"]:
        shard = read_shard(folder / entry["file"], manifest["tokenizer_fingerprint"], manifest["vocab"])
        if (shard.tokens, shard.documents, shard.text_bytes) != (entry["tokens"], entry["documents"], entry["bytes"]):
            raise UserError(f"{shard.path} is not the shard that its manifest lists: {AGAIN}")
        splits[entry["split"]].append(shard)
    _verify(
        folder,
        [shard for split in SPLITS for shard in splits[split]],
        {entry["file"]: entry["sha256"] for entry in manifest["shards"]},
    )
    train, validation = (kind(split, splits[split]) for split in SPLITS)
    return Part(source, weight, folder, manifest["fingerprint"], train, validation)


def _verify(folder: Path, shards: list[Shard], sha256: dict[str, str]) -> None:
    """Check every shard's SHA-256; above a gibibyte in all, not again while its size and time stay as they were."""
    trusted: dict[str, list[int]] = {}
    big = sum(shard.file_size for shard in shards) > ALWAYS_HASHED
    if big and (folder / VERIFIED).is_file():
        try:
            trusted = json.loads((folder / VERIFIED).read_text())
        except ValueError:
            trusted = {}
    seen = {}
    for shard in shards:
        stat = shard.path.stat()
        seen[shard.path.name] = [stat.st_size, stat.st_mtime_ns]
        if trusted.get(shard.path.name) != seen[shard.path.name]:
            shard.check(sha256[shard.path.name])
    if big and trusted != seen:
        write_atomically(folder / VERIFIED, json.dumps(seen).encode())


@dataclass(frozen=True)
class Updates:
    """A run's training batches by update: item n is rows [start, stop) of update n's global batch, int32 [b, T+1].

    Packed rows of conversations are int32 [b, 3, T] (see packing.py).

    Random access, so that grain and torch's DataLoader can carry it; made by `updates_of`, cheap to send to a worker.
    """

    splits: tuple[Split, ...]
    weights: tuple[float, ...]
    fingerprint: str
    seed: int
    context: int
    batch_size: int
    start: int
    stop: int
    updates: int

    def __len__(self) -> int:
        return self.updates

    def __getitem__(self, update: SupportsIndex) -> Tokens:
        number = operator.index(update)
        if not 0 <= number < self.updates:
            raise IndexError(f"update {number} of {self.updates}")
        return self.batch(number)

    def batch(self, update: int) -> Tokens:
        """Item `update`, also beyond the run's last; only these rows are read."""
        windows = [split.windows(self.context) for split in self.splits]
        rows = rows_of_update(windows, self.weights, self.fingerprint, self.seed, update, self.batch_size)
        return np.stack(
            [self.splits[part].read(int(window), self.context) for part, window in rows[self.start : self.stop]]
        )


def updates_of(data: Data, config: RunConfig, process_index: int = 0, process_count: int = 1) -> Updates:
    """The batches of process p of n: rows [p x B/n, (p+1) x B/n) of each global batch, for `train.updates` updates.

    Raises `UserError` when n does not divide B.
    """
    batch_size = config.train.batch_size
    if batch_size % process_count:
        raise UserError(
            f"train.batch_size = {batch_size} can't be shared by {process_count} processes: "
            f"make it a multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count}")
    share = batch_size // process_count
    return Updates(
        tuple(part.train for part in data.parts),
        data.weights,
        data.fingerprint,
        config.train.seed,
        config.row_tokens,
        batch_size,
        process_index * share,
        (process_index + 1) * share,
        config.train.updates,
    )


def global_batch(data: Data, config: RunConfig, update: int) -> Tokens:
    """The global batch of an update, int32 [B, T+1]: inputs [:, :-1], labels [:, 1:]. A pure function."""
    return updates_of(data, config).batch(update)


def validation_batches(data: Data, config: RunConfig) -> list[Tokens]:
    """The validation set: the first windows, int32 [b, T+1] each, the same every time; a mixture's in its proportions.

    At most `train.eval_batches` batches of `train.batch_size` rows; fewer where the split has fewer.
    """
    context, batch_size = config.row_tokens, config.train.batch_size
    windows = [part.validation.windows(context) for part in data.parts]
    parts, counts = parts_at(np.arange(config.train.eval_batches * batch_size), data.weights)
    rows = [
        data.parts[part].validation.read(int(count), context)
        for part, count in zip(parts, counts, strict=True)
        if count < windows[part]
    ]
    if not rows:
        raise UserError(
            f"model.context = {context} is longer than the validation split of {data.validation.tokens} "
            "tokens: lower it, or raise data.validation_fraction"
        )
    return [np.stack(rows[first : first + batch_size]) for first in range(0, len(rows), batch_size)]


def validation_bytes_per_token(data: Data, config: RunConfig) -> float:
    """Bytes of text a label of `validation_batches` stands for, exactly; bits per byte = loss / ln 2 / this."""
    lengths = data.tokenizer.byte_lengths()
    labels = np.concatenate([planes(batch)[1].ravel() for batch in validation_batches(data, config)])
    labels = labels[labels != IGNORED]
    return float(lengths[labels].sum(dtype=np.int64) / len(labels))


def planes(batch: Any) -> tuple[Any, ...]:
    """Inputs [B, T] and labels [B, T] of a batch of either kind, and of packed rows positions [B, T] after them.

    Takes numpy's arrays and any framework's that are cut in the same way.
    """
    return (batch[:, :-1], batch[:, 1:]) if batch.ndim == 2 else (batch[:, 0], batch[:, 1], batch[:, 2])

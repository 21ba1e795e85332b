"""Corpus to shards: split by document hash, tokenize over processes, write; an interrupted run goes on where it was.

A prepared folder holds train-*.bin, validation-*.bin, its tokenizer and, last of all, manifest.json: without a manifest
it isn't prepared. What is finished of an interrupted run is listed in progress.jsonl.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.base.errors import UserError
from coretrain.base.files import (
    TEMPORARY,
    remove,
    sha256_of,
    short_hash,
    write_atomically,
)
from coretrain.config.data import DataConfig
from coretrain.data.cache import alone, cache_folder
from coretrain.data.encode import (
    Encoded,
    Encoder,
    encode_in_order,
    progress_bar,
)
from coretrain.data.manifest import MANIFEST, SPLITS, Entry, check_entry, manifest_of
from coretrain.data.shards import VERSION, read_shard, write_shard
from coretrain.data.sources import Source
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import SAVED_FACTS, Tokenizer, well_formed
from coretrain.tokenizers.train import capped, train_tokenizer

PROGRESS = "progress.jsonl"


class SourceChanged(Exception):
    """The documents of a pass are not those that the finished shards were made from."""


@dataclass(frozen=True)
class Document:
    """A text, its UTF-8 length, its blake2b hash, and the split that the hash of its key puts it in."""

    text: str
    text_bytes: int
    digest: bytes
    split: str
    key: bytes
    """Hash of what decides its split: `digest`, unless the source says otherwise."""


@dataclass
class Writer:
    """Gathers one split's documents into shards; those already finished are passed over."""

    split: str
    folder: Path
    tokenizer: Encoder
    limit: int
    finished: list[dict[str, Any]]
    reused: int = 0
    seen: int = 0
    ids: list[npt.NDArray[Any]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    tokens: int = 0
    text_bytes: int = 0
    hasher: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=32))

    def skips(self, document: Document) -> bool:
        """Whether a finished shard already has this document. Raises `SourceChanged` when it has another."""
        if self.reused >= len(self.finished):
            return False
        entry = self.finished[self.reused]
        self.seen += 1
        self.hasher.update(document.digest)
        if self.seen == entry["documents"]:
            if self.hasher.hexdigest() != entry["documents_hash"]:
                raise SourceChanged
            self.reused, self.seen, self.hasher = self.reused + 1, 0, hashlib.blake2b(digest_size=32)
        return True

    def add(self, document: Document, ids: npt.NDArray[Any]) -> None:
        """Take a document's ids [n], `<|endoftext|>` included; a full shard is written."""
        self.ids.append(ids)
        self.tokens += len(ids)
        self.ends.append(self.tokens)
        self.text_bytes += document.text_bytes
        self.hasher.update(document.digest)
        if self.tokens >= self.limit:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered, if anything, and note it in progress.jsonl."""
        if not self.ends:
            return
        name = f"{self.split}-{len(self.finished):05d}.bin"
        documents_hash = self.hasher.hexdigest()
        sha256 = write_shard(
            self.folder / name,
            self.tokenizer.fingerprint,
            self.tokenizer.vocab,
            np.concatenate(self.ids),
            np.array(self.ends, np.uint64),
            self.text_bytes,
            documents_hash,
        )
        entry = {
            "split": self.split,
            "file": name,
            "sha256": sha256,
            "tokens": self.tokens,
            "documents": len(self.ends),
            "bytes": self.text_bytes,
            "documents_hash": documents_hash,
        }
        with open(self.folder / PROGRESS, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished.append(entry)
        self.reused = len(self.finished)
        self.ids, self.ends, self.tokens, self.text_bytes = [], [], 0, 0
        self.hasher = hashlib.blake2b(digest_size=32)


def documents_of(source: Source, data: DataConfig, forced: dict[bytes, str]) -> Iterator[Document]:
    """The source's documents that aren't blank, at most `data.max_documents`, each with its split."""
    texts = (text for text in source.documents() if text and not text.isspace())
    for given in islice(texts, data.max_documents or None):
        text = well_formed(given)
        raw = text.encode()
        digest = key = hashlib.blake2b(raw, digest_size=32).digest()
        if source.split_key:
            key = hashlib.blake2b(source.split_key(text).encode(), digest_size=32).digest()
        share = int.from_bytes(key[:8], "little") / 2**64
        split = "validation" if share < data.validation_fraction else "train"
        yield Document(text, len(raw), digest, forced.get(key, split), key)


def survey(source: Source, data: DataConfig) -> dict[bytes, str]:
    """Keys of documents whose split must be forced so that none is empty: in a tiny corpus one, otherwise none.

    The forced one depends on the documents, not on their order. Raises `UserError` when there are fewer than two.
    """
    splits, lowest, highest = set(), b"", b""
    for document in documents_of(source, data, {}):
        splits.add(document.split)
        if len(splits) == 2:
            return {}
        lowest = min(lowest or document.key, document.key, key=_by_share)
        highest = max(highest or document.key, document.key, key=_by_share)
    if not splits:
        raise UserError("data/source-without-text", f"data.source = {source.name} has no text: give another source")
    if lowest == highest:
        raise UserError(
            "data/single-document",
            f"data.source = {source.name} has a single document, but training and validation need one "
            "each: give more text, or cut it into several documents",
        )
    return {lowest: "validation"} if splits == {"train"} else {highest: "train"}


def _by_share(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little")


def trained_tokenizer(
    sources: list[Source],
    data: DataConfig,
    say: Callable[[str], None] = print,
    said: Callable[[str], str] | None = None,
) -> Tokenizer:
    """The BPE of these sources' training splits, trained once and kept in the cache.

    `said` is what it learns of a document, where that isn't all of it.
    """
    key = short_hash(
        "tokenizer",
        2 if said else 1,
        [source.listing for source in sources],
        data.tokenizer_vocab,
        data.validation_fraction,
        data.max_documents,
    )
    folder = cache_folder(data) / f"tokenizer-{key[:16]}"
    if (folder / SAVED_FACTS).is_file():
        return load_tokenizer(folder)
    with alone(folder, data, say):
        if (folder / SAVED_FACTS).is_file():
            return load_tokenizer(folder)
        say(f"training a tokenizer of {data.tokenizer_vocab} tokens on {', '.join(source.name for source in sources)}")
        texts = (
            text
            for source in sources
            for text in capped(
                said(document.text) if said else document.text
                for document in documents_of(source, data, survey(source, data))
                if document.split == "train"
            )
        )
        with progress_bar("training the tokenizer", None) as advance:
            tokenizer = train_tokenizer(advance(texts), data.tokenizer_vocab)
        tokenizer.save(folder)
        return tokenizer


def prepared_folder(source: Source, tokenizer: Encoder, data: DataConfig, say: Callable[[str], None] = print) -> Path:
    """The folder of this source's shards, prepared now unless it is there already; its manifest is written last."""
    key = short_hash(
        "shards",
        VERSION,
        source.listing,
        tokenizer.fingerprint,
        data.validation_fraction,
        data.max_documents,
        data.shard_tokens,
    )
    label = "".join(c if c.isalnum() else "-" for c in Path(source.name).name)[:40].strip("-")
    folder = cache_folder(data) / f"{label}-{key[:16]}"
    if (folder / MANIFEST).is_file():
        return folder
    with alone(folder, data, say):
        if not (folder / MANIFEST).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            say(f"preparing {source.name} with tokenizer {tokenizer.name} in {folder}")
            try:
                _prepare(source, tokenizer, data, folder)
            except SourceChanged:
                remove(folder.iterdir())
                try:
                    _prepare(source, tokenizer, data, folder)
                except SourceChanged:
                    raise UserError(
                        "data/source-still-changing",
                        f"data.source = {source.name} changes while it is read: wait until it stays the same",
                    ) from None
    return folder


def _prepare(source: Source, tokenizer: Encoder, data: DataConfig, folder: Path) -> None:
    finished = _finished(folder, tokenizer)
    remove(path for path in folder.glob("*.bin") if path.name not in {entry["file"] for entry in finished})
    remove(folder.glob(f"{TEMPORARY}*"))
    lines = "".join(json.dumps(entry) + "\n" for entry in finished)
    write_atomically(folder / PROGRESS, lines.encode())
    tokenizer.save(folder)
    writers = {
        split: Writer(
            split, folder, tokenizer, data.shard_tokens, [entry for entry in finished if entry["split"] == split]
        )
        for split in SPLITS
    }
    forced = survey(source, data)

    def todo() -> Iterator[Document]:
        with progress_bar(f"preparing {source.name}", source.size) as advance:
            for document in advance(documents_of(source, data, forced), lambda document: document.text_bytes):
                if not writers[document.split].skips(document):
                    yield document

    encoded: Iterable[Encoded[Document]] = encode_in_order(todo(), tokenizer, data.prepare_processes, source.size)
    for document, ids in encoded:
        writers[document.split].add(document, ids)
    for writer in writers.values():
        if writer.reused < len(writer.finished):
            raise SourceChanged
        writer.flush()
    shards = [entry for writer in writers.values() for entry in writer.finished]
    corpus = source.listing[1] if source.listing[:1] == ("corpus",) else ""
    facts = manifest_of(source.name, tokenizer, shards, source.unread, corpus)
    write_atomically(folder / MANIFEST, json.dumps(facts, indent=1).encode())
    remove([folder / PROGRESS])


def _finished(folder: Path, tokenizer: Encoder) -> list[dict[str, Any]]:
    """Entries of progress.jsonl whose shards are whole, up to each split's first that isn't."""
    if not (folder / PROGRESS).is_file():
        return []
    good: list[dict[str, Any]] = []
    broken = set()
    for line in (folder / PROGRESS).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = Entry.model_validate_json(line)
            path = folder / entry.file
            if entry.split not in broken and path.is_file() and sha256_of(path) == entry.sha256:
                check_entry(read_shard(path, tokenizer.fingerprint, tokenizer.vocab), entry)
                good.append(json.loads(line))
                continue
            broken.add(entry.split)
        except ValueError:
            break  # a line cut short by the interruption
        except UserError:
            broken.add(entry.split)
    return good

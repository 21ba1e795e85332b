"""Held-out documents, and the training text without what is nearly one of them.

A page that was cleaned has another hash than the raw page: it may be held out of one source and trained on in another.
So shared runs of words count, not hashes alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, write_atomically
from coretrain.config.data import DataConfig
from coretrain.corpus.dedup.words import Ragged, ngrams, words
from coretrain.data.prepare import Document, documents_of, survey
from coretrain.data.sources import Source

Grams = NDArray[np.uint64]
"""Hashes of a text's n-grams, each once, sorted."""
DOCUMENTS, CHARACTERS = 200, 2000
"""Of a held-out text: at most so many documents, those of the least hash; and of each at most so many characters."""
GRAM = 8
"""Words of a run that counts as the same text."""
SHARED = 0.5
"""Of the n-grams of the shorter of two documents: if they share so many, they count as one."""


@dataclass(frozen=True)
class HeldOut:
    """Documents that no model is trained on."""

    name: str
    texts: tuple[str, ...]
    digests: tuple[str, ...]
    known: int = 0
    """Documents left out since most of their n-grams are in training text all the same: boilerplate."""
    more: int = 0
    """Documents beyond `DOCUMENTS`."""

    @cached_property
    def sizes(self) -> list[int]:
        """UTF-8 bytes of each document."""
        return [len(text.encode()) for text in self.texts]

    @cached_property
    def grams(self) -> list[Grams]:
        """Of each document."""
        return [grams_of(text) for text in self.texts]


def grams_of(text: str) -> Grams:
    """Hashes of a text's n-grams, each once; of a text of fewer words, of all its words as one."""
    found = words([text]).hashes
    count = len(found.values)
    if count >= GRAM:
        return np.unique(ngrams(found, GRAM).values)
    return ngrams(Ragged(found.values, np.array([0, count])), count).values if count else found.values


def candidates(sources: Sequence[Source], data: DataConfig, given: Source | None) -> list[HeldOut]:
    """The documents of `given`, or the validation split of each source. Raises `UserError` where there is none."""
    if given is not None:
        return [_least(given.name, documents_of(given, data, {}))]
    return [
        _least(source.name, (one for one in documents_of(source, data, survey(source, data)) if one.split != "train"))
        for source in sources
    ]


def _least(name: str, documents: Iterator[Document]) -> HeldOut:
    """The documents of the least hash, each once: of all in no order of files."""
    held: dict[bytes, str] = {}
    every = set[bytes]()
    for one in documents:
        every.add(one.digest)
        held[one.digest] = one.text[:CHARACTERS]
        if len(held) > 4 * DOCUMENTS:
            held = {digest: held[digest] for digest in sorted(held)[:DOCUMENTS]}
    if not held:
        raise UserError("command/held-out-empty", f"{name} has no text to hold out: give other text by --held-out")
    chosen = sorted(held)[:DOCUMENTS]
    texts = tuple(held[digest] for digest in chosen)
    return HeldOut(name, texts, tuple(digest.hex() for digest in chosen), 0, len(every) - len(chosen))


class Shared:
    """Which documents are nearly one of some others."""

    def __init__(self, texts: Sequence[HeldOut]) -> None:
        grams = [gram for text in texts for gram in text.grams]
        self.digests = {digest for text in texts for digest in text.digests}
        self.counts = np.array([len(gram) for gram in grams], np.int64)
        owners = np.repeat(np.arange(len(grams)), self.counts)
        values = np.concatenate([*grams, np.zeros(0, np.uint64)])
        order = np.argsort(values, kind="stable")
        self.owners = owners[order]
        self.values, self.first = np.unique(values[order], return_index=True)
        self.last = np.append(self.first[1:], len(values))
        self.seen = np.zeros(len(self.values), np.bool_)

    def places(self, grams: Grams) -> NDArray[np.int64]:
        """Places in `values` of those of `grams` that are there."""
        at = np.searchsorted(self.values, grams)
        inside = at < len(self.values)
        found: NDArray[np.int64] = at[inside][self.values[at[inside]] == grams[inside]]
        return found

    def near(self, digest: str, grams: Grams) -> bool:
        """Whether a document is one of the others, or shares `SHARED` of the shorter one's n-grams with one."""
        if digest in self.digests:
            return True
        places = self.places(grams)
        if not len(places):
            return False
        owners = np.concatenate([self.owners[self.first[at] : self.last[at]] for at in places])
        shared = np.bincount(owners, minlength=len(self.counts))
        return bool((shared > SHARED * np.minimum(self.counts, len(grams))).any())

    def see(self, grams: Grams) -> None:
        """A document that is trained on."""
        self.seen[self.places(grams)] = True

    def known(self, grams: Grams) -> bool:
        """Whether most n-grams of one of the others are in what was seen."""
        return bool(len(grams)) and bool(self.seen[self.places(grams)].mean() > SHARED)


@dataclass(frozen=True)
class Copy:
    """A source's text as small runs read it."""

    source: str
    path: Path
    bytes: int
    """Of its training split."""
    whole: int
    """Bytes of the source's training split, what was left out included."""
    near: int
    """Documents left out since they are nearly held-out ones."""
    part: bool
    """Whether it is a part of the source, as that is enough."""


def copied(source: Source, data: DataConfig, shared: Shared, path: Path, most: int) -> Copy:
    """The documents of a source as a .jsonl file, without those of its training split that are nearly held-out ones.

    No more than about `most` bytes are needed: then those of the least hash. What is in the file counts as seen. A
    finished copy is taken as it is.
    """
    facts = path.with_suffix(".facts.json")
    forced = survey(source, data)
    if not facts.is_file():
        sizes = np.array(
            [(_rank(one), one.text_bytes) for one in documents_of(source, data, forced)], np.uint64
        ).reshape(-1, 2)
        order = sizes[np.argsort(sizes[:, 0], kind="stable")]
        enough = int(np.searchsorted(np.cumsum(order[:, 1]), most))
        limit = int(order[min(enough, len(order) - 1), 0])
        told = {"bytes": 0, "whole": 0, "near": 0, "part": int(enough < len(order))}

        def lines() -> Iterator[str]:
            for one in documents_of(source, data, forced):
                if one.split == "train":
                    told["whole"] += one.text_bytes
                    if _rank(one) <= limit and shared.near(one.digest.hex(), grams_of(one.text)):
                        told["near"] += 1
                        continue
                if _rank(one) <= limit:
                    told["bytes"] += one.text_bytes if one.split == "train" else 0
                    yield json.dumps({"text": one.text}, ensure_ascii=False) + "\n"

        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, *lines())
        write_atomically(facts, json.dumps(told))
    kept: dict[str, Any] = read_json(facts, "what was copied")
    return Copy(source.name, path, kept["bytes"], kept["whole"], kept["near"], bool(kept["part"]))


def _rank(document: Document) -> int:
    """A number by which documents are in a random order, another than that of the splits."""
    return int.from_bytes(document.digest[8:16], "little")


def unknown(texts: Sequence[HeldOut], copies: Sequence[Source], data: DataConfig, shared: Shared) -> list[HeldOut]:
    """The held-out documents that training text doesn't have all the same. Raises `UserError` where none is left."""
    for source in copies:
        for one in documents_of(source, data, survey(source, data)):
            if one.split == "train":
                shared.see(grams_of(one.text))
    found = []
    for text in texts:
        kept = [at for at, grams in enumerate(text.grams) if not shared.known(grams)]
        if not kept:
            raise UserError(
                "command/held-out-known",
                f"held-out text of {text.name}: all {len(text.texts)} documents are in the training text too: give "
                "other text by --held-out",
            )
        left = len(text.texts) - len(kept)
        texts_kept, digests = (tuple(of[at] for at in kept) for of in (text.texts, text.digests))
        found.append(HeldOut(text.name, texts_kept, digests, left, text.more))
    return found

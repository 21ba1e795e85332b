"""What is said of prepared data in its manifest.json, written last: its shards, and whose ids are in them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coretrain.base.errors import UserError
from coretrain.base.files import read_json
from coretrain.data.encode import Encoder
from coretrain.data.shards import AGAIN, VERSION, Shard

MANIFEST = "manifest.json"
SPLITS = ("train", "validation")
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]


class Totals(BaseModel):
    """Tokens, documents and bytes of text."""

    model_config = ConfigDict(strict=True)

    tokens: Size
    documents: Size
    bytes: Size


class Entry(Totals):
    """A shard, as the manifest lists it."""

    split: Literal["train", "validation"]
    file: str
    sha256: Hash
    documents_hash: Hash


class Prepared(BaseModel):
    """The whole manifest."""

    model_config = ConfigDict(strict=True)
    version: Literal[1]
    source: str
    tokenizer: str
    vocab: Size
    tokenizer_fingerprint: Hash
    splits: dict[str, Totals]
    shards: list[Entry]
    fingerprint: Hash
    unread: list[str] = []
    """Fields of chat rows that are in no shard."""
    corpus: Hash | None = None
    """Fingerprint of the source, where `twintrain corpus` made it."""


def manifest_of(
    source: str, tokenizer: Encoder, shards: list[dict[str, Any]], unread: Collection[str] = (), corpus: str = ""
) -> dict[str, Any]:
    """The manifest of a source's shards, those of each split in order; `unread`: fields of its rows in no shard;
    `corpus`: the source's own fingerprint, if it has one.
    """
    return {
        "version": VERSION,
        "source": source,
        "tokenizer": tokenizer.name,
        "vocab": tokenizer.vocab,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "splits": _totals(shards),
        "shards": shards,
        "fingerprint": _fingerprint(tokenizer.fingerprint, shards),
        **({"unread": sorted(unread)} if unread else {}),
        **({"corpus": corpus} if corpus else {}),
    }


def _totals(shards: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        split: {
            what: sum(entry[what] for entry in shards if entry["split"] == split)
            for what in ("tokens", "documents", "bytes")
        }
        for split in SPLITS
    }


def _fingerprint(tokenizer: str, shards: Sequence[Mapping[str, Any]]) -> str:
    """The one hash of prepared data: over its tokenizer's and its shards', hex."""
    lines = [tokenizer, *(f"{entry['file']} {entry['sha256']}" for entry in shards)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_manifest(folder: Path) -> Prepared:
    """The manifest of a prepared folder, each field checked. Raises `UserError` naming the file and what is wrong."""
    path = folder / MANIFEST
    raw = read_json(path, "the manifest of prepared data", AGAIN)
    version = raw.get("version")
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            "data/manifest-too-new",
            f"{path} has version {version}, newer than this twintrain's {VERSION}: "
            "upgrade twintrain, or give another data.cache",
        )
    try:
        manifest = Prepared.model_validate(raw)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            "data/manifest-field-wrong", f"{path} is damaged ({place} is missing or wrong): {AGAIN}"
        ) from None
    shards = raw["shards"]
    files = [(entry.split, entry.file) for entry in manifest.shards]
    counts = {split: sum(entry.split == split for entry in manifest.shards) for split in SPLITS}
    named = [(split, f"{split}-{n:05d}.bin") for split, count in counts.items() for n in range(count)]
    if (
        manifest.fingerprint != _fingerprint(manifest.tokenizer_fingerprint, shards)
        or sorted(files) != sorted(named)
        or raw["splits"] != _totals(shards)
    ):
        raise UserError(
            "data/manifest-fingerprint-wrong", f"{path} is damaged (its fingerprint does not fit its shards): {AGAIN}"
        )
    return manifest


def check_entry(shard: Shard, entry: Entry) -> None:
    """Raise `UserError` unless a shard's header says of it what the manifest does."""
    ours = shard.tokens, shard.documents, shard.text_bytes, shard.documents_hash
    if ours != (entry.tokens, entry.documents, entry.bytes, entry.documents_hash):
        raise UserError("data/shard-not-in-manifest", f"{shard.path} is not the shard that its manifest lists: {AGAIN}")

"""A prepared folder, verified and opened as one part of the data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import read_json, write_atomically
from coretrain.data.manifest import SPLITS, check_entry, read_manifest
from coretrain.data.shards import Shard, read_shard
from coretrain.data.splits import Part, Split

ALWAYS_HASHED = 2**30
VERIFIED = "verified.json"


def open_part(folder: Path, source: str, weight: float, kind: Callable[[str, Sequence[Shard]], Split] = Split) -> Part:
    """One prepared folder, checked; its splits are of `kind`. Raises `UserError` naming a damaged file."""
    manifest = read_manifest(folder)
    splits: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for entry in manifest.shards:
        shard = read_shard(folder / entry.file, manifest.tokenizer_fingerprint, manifest.vocab)
        check_entry(shard, entry)
        splits[entry.split].append(shard)
    _verify(
        folder,
        [shard for split in SPLITS for shard in splits[split]],
        {entry.file: entry.sha256 for entry in manifest.shards},
    )
    train, validation = (kind(split, splits[split]) for split in SPLITS)
    unread = tuple(manifest.unread)
    return Part(source, weight, folder, manifest.fingerprint, train, validation, unread, manifest.corpus or "")


def _verify(folder: Path, shards: list[Shard], sha256: dict[str, str]) -> None:
    """Check every shard's SHA-256; above a gibibyte in all, not again while its size and time stay as they were."""
    trusted: dict[str, list[int]] = {}
    big = sum(shard.file_size for shard in shards) > ALWAYS_HASHED
    if big and (folder / VERIFIED).is_file():
        with contextlib.suppress(UserError):  # damaged: all is hashed once more
            trusted = read_json(folder / VERIFIED, "which shards were checked")
    seen = {}
    for shard in shards:
        stat = shard.path.stat()
        seen[shard.path.name] = [stat.st_size, stat.st_mtime_ns]
        if trusted.get(shard.path.name) != seen[shard.path.name]:
            shard.check(sha256[shard.path.name])
    if big and trusted != seen:
        write_atomically(folder / VERIFIED, json.dumps(seen).encode())

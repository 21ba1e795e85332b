"""Shard files: a fixed header, token ids, document ends; written whole or not at all, read through a memory map.

Layout, little-endian: 128 bytes of header, then ids (uint16, or uint32 for a vocabulary above 65536), zeros up to a
multiple of 8, then for each document the offset one past its `<|endoftext|>` (uint64). A shard holds whole documents.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of, write_atomically
from coretrain.tokenizers.tokenizer import check_ids

MAGIC = b"TWSHARD\0"
VERSION = 1
HEADER = struct.Struct("<8sHHI32sQQQ32s24x")
AGAIN = "delete its folder and prepare the data again"


@dataclass(frozen=True)
class Shard:
    """What a shard's header says. `text_bytes` is its text in UTF-8, `<|endoftext|>` not counted."""

    path: Path
    dtype: np.dtype[Any]
    vocab: int
    tokenizer: str
    tokens: int
    documents: int
    text_bytes: int
    documents_hash: str

    @property
    def ends_offset(self) -> int:
        """Where in the file the document ends start."""
        return HEADER.size + -(-self.tokens * self.dtype.itemsize // 8) * 8

    @property
    def file_size(self) -> int:
        """Bytes that the whole file must have."""
        return self.ends_offset + 8 * self.documents

    def ids(self) -> npt.NDArray[Any]:
        """Token ids [tokens], a read-only memory map."""
        return np.memmap(self.path, self.dtype, "r", HEADER.size, (self.tokens,))

    def ends(self) -> npt.NDArray[np.uint64]:
        """Offsets one past each document's end [documents], a read-only memory map."""
        return np.memmap(self.path, np.dtype("<u8"), "r", self.ends_offset, (self.documents,))

    def check(self, sha256: str) -> None:
        """Raise `UserError` unless the whole file has this SHA-256 and every id is in the vocabulary."""
        if sha256_of(self.path) != sha256:
            raise UserError(
                "data/shard-checksum-wrong",
                f"{self.path} is damaged (its SHA-256 is not the manifest's): {AGAIN}",
            )
        check_ids(self.ids(), self.vocab, str(self.path))


def id_dtype(vocab: int) -> np.dtype[Any]:
    """uint16 where every id of the vocabulary, specials included, fits; otherwise uint32."""
    return np.dtype("<u2") if vocab <= 2**16 else np.dtype("<u4")


def write_shard(
    path: Path,
    tokenizer: str,
    vocab: int,
    ids: npt.NDArray[Any],
    ends: npt.NDArray[Any],
    text_bytes: int,
    documents_hash: str,
) -> str:
    """Write a shard to `path`: ids [tokens], ends [documents]; hashes are hex. Returns the file's SHA-256."""
    dtype = id_dtype(vocab)
    check_ids(ids, vocab, str(path))
    header = HEADER.pack(
        MAGIC,
        VERSION,
        dtype.itemsize,
        vocab,
        bytes.fromhex(tokenizer),
        len(ids),
        len(ends),
        text_bytes,
        bytes.fromhex(documents_hash),
    )
    body = np.ascontiguousarray(ids, dtype)
    padding = bytes(-body.nbytes % 8)
    tail = np.ascontiguousarray(ends, "<u8")
    return write_atomically(path, header, body.data.cast("B"), padding, tail.data.cast("B"))


def read_shard(path: Path, tokenizer: str, vocab: int) -> Shard:
    """Read and check header and size. Raises `UserError` naming the file when it is damaged or another tokenizer's."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER.size)
    except OSError as error:
        raise UserError("data/shard-unreadable", f"can't read {path} ({error.strerror}): {AGAIN}") from None
    if len(raw) < HEADER.size or raw[:8] != MAGIC:
        raise UserError("data/not-a-shard", f"{path} is no shard, or its header is damaged: {AGAIN}")
    _, version, width, size, owner, tokens, documents, text_bytes, documents_hash = HEADER.unpack(raw)
    if version > VERSION:
        raise UserError(
            "data/shard-format-too-new",
            f"{path} has format version {version}, newer than this twintrain's {VERSION}: "
            f"upgrade twintrain, or {AGAIN}",
        )
    if owner.hex() != tokenizer or size != vocab:
        raise UserError(
            "data/shard-tokenizer-differs",
            f"{path} was made with another tokenizer ({owner.hex()[:12]}, vocabulary {size}; wanted "
            f"{tokenizer[:12]}, {vocab}): {AGAIN}",
        )
    if version < 1 or width != id_dtype(vocab).itemsize:
        raise UserError("data/shard-header-damaged", f"{path} has a damaged header: {AGAIN}")
    shard = Shard(path, id_dtype(vocab), vocab, tokenizer, tokens, documents, text_bytes, documents_hash.hex())
    found = path.stat().st_size
    if found != shard.file_size:
        raise UserError(
            "data/shard-length-wrong",
            f"{path} is damaged: it has {found} bytes where its header says {shard.file_size}: {AGAIN}",
        )
    return shard

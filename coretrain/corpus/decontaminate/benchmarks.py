"""The items of a benchmark as its files have them: the texts in each row of .jsonl or .parquet, or each part of a .txt.

What can't be read is an error here: an item that is missed can't be found.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json, read_bytes, shown

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".txt")
LARGEST_TEXT = 2**30
_EMPTY_LINES = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Item:
    """A text that no training document should have."""

    row: int
    """From 1: the line or row, or the part of a text file between empty lines."""
    field: str
    """Where in the row: `question`, `choices.0`; empty in a text file."""
    text: str


def kind_of(path: Path) -> str:
    """The ending of a file that can be read. Raises `UserError` for others."""
    kind = next((one for one in KINDS if path.name.lower().endswith(one)), "")
    if not kind:
        raise UserError(
            "corpus/benchmark-kind-unknown", f"{path} is no benchmark that can be read: give one of {' '.join(KINDS)}"
        )
    return kind


def name_of(path: Path) -> str:
    """What a benchmark is called: its file's name without the ending."""
    return path.name[: -len(kind_of(path))]


def items(path: Path, fields: Sequence[str] = ()) -> Iterator[Item]:
    """Every text of a benchmark; of those `fields` alone where some are named (`question`; `choices` with all in it).

    Raises `UserError` naming the file and the row that can't be read, or a field that no row has.
    """
    kind = kind_of(path)
    try:
        if kind == ".txt":
            yield from _parts(path)
            return
        missing = set(fields)
        for number, row in _parquet(path) if kind == ".parquet" else _lines(path, kind):
            if not isinstance(row, Mapping):
                raise UserError(
                    "corpus/benchmark-row-not-an-object",
                    f"{path}, row {number}: {shown(row)} is no object with fields: mend it",
                )
            for field, text in _texts(row, ""):
                chosen = [one for one in fields if field == one or field.startswith(f"{one}.")]
                missing -= set(chosen)
                if chosen or not fields:
                    yield Item(number, field, text)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError("corpus/benchmark-unreadable", f"can't read {path} ({reason}): give another file") from None
    if missing:
        raise UserError(
            "corpus/benchmark-field-missing",
            f"no row of {path} has a text in {shown(sorted(missing)[0])}: name a field that is there",
        )


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a value, however nested, and where."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for at, inner in enumerate(value):
            yield from _texts(inner, f"{place}.{at}" if place else str(at))


def _parts(path: Path) -> Iterator[Item]:
    try:
        text = read_bytes(path, LARGEST_TEXT).decode("utf-8-sig")
    except ValueError as error:
        raise UserError("corpus/benchmark-not-text", f"{path} is no text in UTF-8 ({error}): mend it") from None
    parts = [one for one in _EMPTY_LINES.split(text.replace("\r\n", "\n")) if one.strip()]
    yield from (Item(number, "", one) for number, one in enumerate(parts, 1))


def _lines(path: Path, kind: str) -> Iterator[tuple[int, Any]]:
    import zstandard

    with open(path, "rb") as raw:
        number = 0
        try:
            for number, line in enumerate(_unpacked(raw, kind), 1):
                if line.strip():
                    yield number, from_json(line.decode("utf-8-sig"))
        except ValueError as error:
            raise UserError(
                "corpus/benchmark-bad-json", f"{path}, line {number} is no JSON ({error}): mend it"
            ) from None
        except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError):
            raise _damaged(path, f"line {number}") from None


def _unpacked(raw: BinaryIO, kind: str) -> Iterator[bytes]:
    if kind == ".jsonl.gz":
        yield from gzip.GzipFile(fileobj=raw)
    elif kind == ".jsonl.zst":
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            yield from io.BufferedReader(stream)
    else:
        yield from raw


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException:
        raise _damaged(path, f"row {number}") from None


def _damaged(path: Path, behind: str) -> UserError:
    return UserError("corpus/benchmark-damaged", f"{path} is damaged behind {behind}: download it again")

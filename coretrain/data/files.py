"""Files of a source: which there are, of which kind, and the records in them."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import TooDeepError, from_json
from coretrain.tokenizers.tokenizer import well_formed

PLAIN = (".txt", ".md", ".py")
RECORDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SUFFIXES = (*PLAIN, *RECORDS)
PACKED = (".gz", ".zst", ".parquet")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""How JSON may spell half of a character, which no encoding of text has."""


def of_kind(path: Path, kinds: str | tuple[str, ...]) -> bool:
    """Whether a file is of some kinds, by the end of its name, in capitals or not."""
    return path.name.lower().endswith(kinds)


def sorted_out(folder: Path, kinds: tuple[str, ...]) -> tuple[list[Path], str]:
    """The files of these kinds in a folder, and what else there is, in words.

    Links to folders and suffixes in capitals don't count, as ever: a run that goes on must find the same files.
    """
    every = walk(folder)
    files = [path for path in every if path.name.endswith(kinds)]
    if odd := next((path for path in files if not path.is_file()), None):
        raise UserError(
            "data/link-to-nothing", f"{odd} is a link to nothing, or no file of data: mend it, or take it away"
        )
    others = Counter(_kind(path) for path in every if not path.name.endswith(kinds))
    shown = [f"{count} {kind}" for kind, count in others.most_common(5)] + ["..."] * (len(others) > 5)
    return files, f"{others.total()} others in {folder}: {', '.join(shown)}" if others else ""


def _kind(path: Path) -> str:
    return "linked folder" if path.is_dir() else path.suffix or "without a suffix"


def walk(root: Path, skipped: Collection[str] = (), strict: bool = True) -> list[Path]:
    """Every file and link below `root` that isn't hidden; `strict`: `UserError` where one can't be looked into."""
    found = list[Path]()
    for folder, folders, names in os.walk(root, onerror=_unlisted if strict else None):
        folders[:] = sorted(name for name in folders if name not in skipped and not name.startswith("."))
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))] if strict else []
        found += [Path(folder, name) for name in (*names, *links) if not name.startswith(".")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _unlisted(error: OSError) -> None:
    raise UserError(
        "data/folder-unreadable",
        f"{error.filename} can't be looked into ({error.strerror}): let it be read, or take it out of data.source",
    ) from None


def stats(files: list[Path], root: Path) -> list[tuple[str, int, int]]:
    """Name below `root`, size and time of each file: what a cache is keyed by."""
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def total(files: list[Path]) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in files)


def text_of(path: Path) -> str:
    """A file's text. Raises `UserError` where it is no UTF-8."""
    try:
        return path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            "data/file-not-utf-8", f"{path} is not UTF-8 text (byte {error.start}): convert it or leave it out"
        ) from None


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow and the system say while `path` is read into a `UserError` that names it."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "data/file-unreadable",
            f"{path} can't be read ({str(error).splitlines()[0]}): it is damaged or of another kind than its name says",
        ) from None


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and row, record) for every row of a .parquet file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, what its JSON holds) for every line that isn't blank. Raises `UserError` where it is no JSON."""
    import io

    import pyarrow as pa

    kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    with pa.input_stream(str(path), compression=kind) as stream:
        for number, line in enumerate(io.BufferedReader(stream, 1 << 20), 1):
            if not line.strip():
                continue
            try:
                row = from_json(line)
                if SURROGATE.search(line):
                    row = _well_formed(row)
            except TooDeepError as error:
                raise UserError(
                    "data/line-nested-too-deep", f"{path}, line {number}: {error}: mend the line or leave it out"
                ) from None
            except ValueError:
                raise UserError(
                    "data/line-not-json", f"{path}, line {number}: no JSON in UTF-8: mend the line or leave it out"
                ) from None
            yield f"{path}, line {number}", row


def _well_formed(value: Any) -> Any:
    """What JSON holds, its texts and names without lone surrogates."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, list):
        return [_well_formed(one) for one in value]
    if isinstance(value, dict):
        return {well_formed(name): _well_formed(one) for name, one in value.items()}
    return value

"""Where text comes from: Python's own library, local files, a dataset of the Hub. Documents come in a fixed order."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.base.parse import TooDeepError, from_json
from coretrain.tokenizers.tokenizer import well_formed

PLAIN = (".txt", ".md", ".py")
RECORDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SUFFIXES = (*PLAIN, *RECORDS)
PACKED = (".gz", ".zst", ".parquet")
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""How JSON may spell half of a character, which no encoding of text has."""
# tables of characters are a tenth of the tokens, and no more than noise to a small model
SKIPPED_TABLES = {"html/entities.py", "stringprep.py"}
SKIPPED_FOLDERS = {"encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
PIECE = 4096


@dataclass(frozen=True)
class Source:
    """A corpus: `documents()` starts a fresh pass, in the same order every time."""

    name: str
    listing: tuple[Any, ...]
    """What the documents depend on (files with size and time, versions): the cache is keyed by it."""
    documents: Callable[[], Iterator[str]]
    size: int | None = None
    """Bytes of text, where that is known beforehand."""
    unread: Collection[str] = ()
    """Fields of rows met so far that nothing reads, of conversations."""
    passed_over: str = ""
    """Files of a folder that aren't read, in words."""


def open_source(name: str, text_field: str = "text") -> Source:
    """The source that `data.source` names. Raises `UserError` when it is missing or of no known kind."""
    if name == "stdlib":
        return _stdlib()
    if name.startswith("hf:"):
        return _hub(name, text_field)
    return _local(name, typed_path(name), text_field)


def _stdlib() -> Source:
    root = Path(sysconfig.get_paths()["stdlib"])
    topics = root / "pydoc_data" / "topics.py"
    files = [
        path
        for path in _walk(root, SKIPPED_FOLDERS, strict=False)
        if _is(path, ".py")
        and path != topics
        and path.relative_to(root).as_posix() not in SKIPPED_TABLES
        and not path.name.startswith("_sysconfigdata")  # it holds this machine's paths
    ]
    if not files:
        raise UserError(
            "data/stdlib-without-sources",
            "data.source = stdlib: this Python comes without its .py files: give a file or a folder of text",
        )

    def documents() -> Iterator[str]:
        for path in files:
            yield _text(path)
        texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics if topics.is_file() else {}
        yield from (texts[key] for key in sorted(texts))

    return Source("stdlib", ("stdlib", sys.version, *_stats(files, root)), documents, _total(files))


def _local(name: str, path: Path, text_field: str) -> Source:
    passed_over = ""
    if path.is_file():
        if not _is(path, SUFFIXES):
            raise UserError(
                "data/file-kind-unknown",
                f"data.source = {name}: unknown kind of file: use one of {' '.join(SUFFIXES)}",
            )
        files, root = [path], path.parent
    elif path.is_dir():
        (files, passed_over), root = _sorted_out(path, SUFFIXES), path
        if not files:
            raise UserError(
                "data/folder-without-files",
                f"data.source = {name}: no {' '.join(SUFFIXES)} file in that folder",
            )
    elif path.exists():
        raise UserError(
            "data/source-not-a-file",
            f"data.source = {name}: neither a file nor a folder, and a corpus is read more than once: give a file",
        )
    else:
        raise UserError(
            "data/source-not-found",
            f"data.source = {name}: no such file or folder: give a path that exists, stdlib, or hf:NAME",
        )

    def documents() -> Iterator[str]:
        for file in files:
            if not _is(file, PLAIN):
                yield from _rows(file, text_field)
            elif file == path:  # one text is a corpus: it needs documents to split
                yield from pieces(_text(file))
            else:
                yield _text(file)

    size = None if any(_is(file, PACKED) for file in files) else _total(files)
    return Source(name, (text_field, *_stats(files, root)), documents, size, passed_over=passed_over)


@dataclass(frozen=True)
class Rows:
    """Records of .jsonl and .parquet files: `rows()` starts a fresh pass over (file and line, record)."""

    name: str
    listing: tuple[Any, ...]
    rows: Callable[[], Iterator[tuple[str, Any]]]
    size: int | None = None
    passed_over: str = ""


def open_rows(name: str) -> Rows:
    """The records that `data.source` names. Raises `UserError` when they are missing or of no known kind."""
    path, kinds, passed_over = typed_path(name), " ".join(RECORDS), ""
    if path.is_file() and _is(path, RECORDS):
        files, root = [path], path.parent
    elif path.is_dir():
        (files, passed_over), root = _sorted_out(path, RECORDS), path
    elif path.exists():
        raise UserError(
            "data/chat-file-kind-unknown",
            f"data.source = {name}: data.format = chat reads {kinds}: give a file or a folder of these",
        )
    else:
        raise UserError(
            "data/chat-source-not-found",
            f"data.source = {name}: no such file or folder: data.format = chat needs one of {kinds}",
        )
    if not files:
        raise UserError("data/chat-folder-without-files", f"data.source = {name}: no {kinds} file in that folder")

    def rows() -> Iterator[tuple[str, Any]]:
        for file in files:
            with _readable(file):
                yield from _parquet_rows(file) if _is(file, ".parquet") else json_rows(file)

    size = None if any(_is(file, PACKED) for file in files) else _total(files)
    return Rows(name, tuple(_stats(files, root)), rows, size, passed_over)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row


def _hub(name: str, text_field: str) -> Source:
    parts = name.split(":")[1:]
    if len(parts) > 3 or not parts[0]:
        raise UserError(
            "data/hf-name-malformed",
            f"data.source = {name}: write hf:NAME, hf:NAME:SUBSET or hf:NAME:SUBSET:SPLIT",
        )
    dataset, subset, split = (*parts, *[""] * (3 - len(parts)))
    folder = typed_path(dataset)
    listing = _stats([path for path in _walk(folder) if path.is_file()], folder) if folder.is_dir() else []

    def documents() -> Iterator[str]:
        try:
            import datasets
        except ImportError:
            raise UserError(
                "data/datasets-package-missing",
                f"data.source = {name} needs the package datasets: pip install 'twintrain[datasets]'",
            ) from None
        try:
            rows = datasets.load_dataset(dataset, subset or None, split=split or "train", streaming=True)
            columns = rows.column_names
            for row in rows:
                if text_field not in row:
                    raise UserError("data/hf-field-missing", _no_field(name, text_field, columns or row))
                if isinstance(row[text_field], str):
                    yield row[text_field]
                elif row[text_field] is not None:
                    raise UserError(
                        "data/hf-field-not-text",
                        f"{name}: field {text_field} is no text: set data.text_field",
                    )
        except UserError:
            raise
        # A script in place of files, an unknown subset or split, files of another kind, no connection: each library
        # below has exceptions of its own, some of them bare RuntimeErrors.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise UserError(
                "data/hf-source-unreadable",
                f"data.source = {name} can't be read by the package datasets: {reason.rstrip('.')}; look at name, "
                "subset, split and network, or give files of text, as .jsonl or .parquet",
            ) from None

    return Source(name, ("hf", dataset, subset, split, text_field, *listing), documents)


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut a text at blank lines (at line ends where none is near) into documents of `size` characters or more."""
    start = 0
    while start < len(text):
        stop = text.find("\n\n", start + size)
        if stop < 0 or stop > start + 2 * size:
            stop = text.find("\n", start + size)
        while 0 <= stop < len(text) and text[stop] == "\n":
            stop += 1
        stop = len(text) if stop < 0 else stop
        yield text[start:stop]
        start = stop


def _is(path: Path, kinds: str | tuple[str, ...]) -> bool:
    """Whether a file is of some kinds, by the end of its name, in capitals or not."""
    return path.name.lower().endswith(kinds)


def _sorted_out(folder: Path, kinds: tuple[str, ...]) -> tuple[list[Path], str]:
    """The files of these kinds in a folder, and what else there is, in words.

    Links to folders and suffixes in capitals don't count, as ever: a run that goes on must find the same files.
    """
    every = _walk(folder)
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


def _walk(root: Path, skipped: Collection[str] = (), strict: bool = True) -> list[Path]:
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


def _stats(files: list[Path], root: Path) -> list[tuple[str, int, int]]:
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in files]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _total(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            "data/file-not-utf-8", f"{path} is not UTF-8 text (byte {error.start}): convert it or leave it out"
        ) from None


def _no_field(where: str, text_field: str, columns: Any) -> str:
    return f"{where} has no field {text_field}, only {', '.join(map(str, columns)) or 'none'}: set data.text_field"


def _rows(path: Path, text_field: str) -> Iterator[str]:
    with _readable(path):
        yield from _parquet(path, text_field) if _is(path, ".parquet") else _jsonl(path, text_field)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "data/file-unreadable",
            f"{path} can't be read ({str(error).splitlines()[0]}): it is damaged or of another kind than its name says",
        ) from None


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise UserError("data/parquet-field-missing", _no_field(str(path), text_field, columns))
        kind = file.schema_arrow.field(text_field).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(
                "data/parquet-field-not-text", f"{path}: field {text_field} is {kind}, no text: set data.text_field"
            )
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _jsonl(path: Path, text_field: str) -> Iterator[str]:
    for where, row in json_rows(path):
        if not isinstance(row, dict) or text_field not in row:
            raise UserError(
                "data/jsonl-field-missing", _no_field(where, text_field, row if isinstance(row, dict) else ())
            )
        if isinstance(row[text_field], str):
            yield row[text_field]
        elif row[text_field] is not None:
            raise UserError("data/jsonl-field-not-text", f"{where}: field {text_field} is no text: set data.text_field")


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

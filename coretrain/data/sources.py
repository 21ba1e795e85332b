"""Where text comes from: Python's own library, local files, a dataset of the Hub. Documents come in a fixed order."""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.corpus.pipeline.seal import check_file, is_corpus, read_seal
from coretrain.data.files import (
    PACKED,
    PLAIN,
    SUFFIXES,
    json_rows,
    of_kind,
    readable,
    sorted_out,
    stats,
    text_of,
    total,
    walk,
)
from coretrain.data.hub import HUB, hub_listing, hub_parts, hub_rows
from coretrain.tasks.registry import is_task

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
    split_key: Callable[[str], str] | None = None
    """What of a document decides its split, such as its prompt: documents that are alike in it share one. None: all."""


def open_source(name: str, text_field: str = "text") -> Source:
    """The source that `data.source` names. Raises `UserError` when it is missing or of no known kind."""
    if name == "stdlib":
        return _stdlib()
    if is_task(name):
        raise UserError(
            "data/task-as-text",
            f"data.source = {name}: a task has rows and no running text: set data.format = chat, pairs, labels or "
            "prompts",
        )
    if name.startswith(HUB):
        return _hub(name, text_field)
    return _local(name, typed_path(name), text_field)


def _stdlib() -> Source:
    root = Path(sysconfig.get_paths()["stdlib"])
    topics = root / "pydoc_data" / "topics.py"
    files = [
        path
        for path in walk(root, SKIPPED_FOLDERS, strict=False)
        if of_kind(path, ".py")
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
            yield text_of(path)
        texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics if topics.is_file() else {}
        yield from (texts[key] for key in sorted(texts))

    return Source("stdlib", ("stdlib", sys.version, *stats(files, root)), documents, total(files))


def _local(name: str, path: Path, text_field: str) -> Source:
    passed_over = ""
    if is_corpus(path):
        return _corpus(name, path, text_field)
    if path.is_file():
        if not of_kind(path, SUFFIXES):
            raise UserError(
                "data/file-kind-unknown",
                f"data.source = {name}: unknown kind of file: use one of {' '.join(SUFFIXES)}",
            )
        files, root = [path], path.parent
    elif path.is_dir():
        (files, passed_over), root = sorted_out(path, SUFFIXES), path
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
            if not of_kind(file, PLAIN):
                yield from _rows(file, text_field)
            elif file == path:  # one text is a corpus: it needs documents to split
                yield from pieces(text_of(file))
            else:
                yield text_of(file)

    size = None if any(of_kind(file, PACKED) for file in files) else total(files)
    return Source(name, (text_field, *stats(files, root)), documents, size, passed_over=passed_over)


def _corpus(name: str, folder: Path, text_field: str) -> Source:
    """What `twintrain corpus` made: the documents that its seal lists, each file held to its hash before it is read."""
    sealed = read_seal(folder)
    checked = set[str]()

    def documents() -> Iterator[str]:
        for file in sealed.files:
            if file.file not in checked:
                check_file(folder, file)
            checked.add(file.file)
            yield from _rows(folder / file.file, text_field)

    return Source(name, ("corpus", sealed.fingerprint, text_field), documents, sealed.bytes)


def _hub(name: str, text_field: str) -> Source:
    listing = ("hf", *hub_parts(name), text_field, *hub_listing(name))

    def documents() -> Iterator[str]:
        for row in hub_rows(name):
            if text_field not in row:
                raise UserError("data/hf-field-missing", _no_field(name, text_field, row))
            if isinstance(row[text_field], str):
                yield row[text_field]
            elif row[text_field] is not None:
                raise UserError(
                    "data/hf-field-not-text",
                    f"{name}: field {text_field} is no text: set data.text_field",
                )

    return Source(name, listing, documents)


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


def _no_field(where: str, text_field: str, columns: Any) -> str:
    return f"{where} has no field {text_field}, only {', '.join(map(str, columns)) or 'none'}: set data.text_field"


def _rows(path: Path, text_field: str) -> Iterator[str]:
    with readable(path):
        yield from _parquet(path, text_field) if of_kind(path, ".parquet") else _jsonl(path, text_field)


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

"""Documents and signals as they lie between stages and in the end: parquet, compressed with zstd, read in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.corpus.document import Document, Signal, Value

OWN = ("url", "date", "source", "language")
"""Metadata that have a column of their own; the others are one column of JSON."""
ROWS, CHARACTERS = 1024, 2**22
"""A row group ends with the first of them."""
AT_ONCE = 256
"""Rows that are read at once."""
LEVEL = 3
"""Of zstd."""


class Writer:
    """A parquet file of documents, written as they come: the same bytes for the same documents, however they come."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ("id", "text", *OWN, "metadata")
        self._schema = pa.schema(
            [pa.field(name, pa.large_string() if name == "text" else pa.string()) for name in names]
        )
        self._file = pq.ParquetWriter(path, self._schema, **OPTIONS)
        self._held: list[Document] = []
        self._size = 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._file.close()

    def add(self, documents: Iterable[Document]) -> None:
        """Some more documents."""
        for one in documents:
            self._held.append(one)
            self._size += len(one.text)
            if len(self._held) >= ROWS or self._size >= CHARACTERS:
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._held:
            rows = [_row(one) for one in self._held]
            columns = [_strings([row[one.name] for row in rows], one.type) for one in self._schema]
            self._file.write_table(pa.Table.from_arrays(columns, schema=self._schema), row_group_size=len(rows))
        self._held, self._size = [], 0


OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": LEVEL,
    "use_dictionary": list(OWN),
    "write_statistics": False,
    "write_page_checksum": True,
}


def _strings(column: Sequence[str | None], kind: Any) -> Any:
    """A column of words, of Arrow's type `kind`. `pyarrow.array` would import pandas, where that is installed, in every
    process: a quarter of a second.
    """
    import pyarrow as pa

    wide = pa.types.is_large_string(kind)
    encoded = [b"" if one is None else one.encode() for one in column]
    ends = np.zeros(len(column) + 1, np.int64 if wide else np.int32)
    np.cumsum([len(one) for one in encoded], out=ends[1:])
    valid = np.array([one is not None for one in column], np.bool_)
    holes = len(valid) - int(valid.sum())
    known = pa.py_buffer(np.packbits(valid, bitorder="little")) if holes else None
    buffers = [known, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(kind, len(column), buffers, holes)


def _numbers(column: NDArray[Any]) -> Any:
    """A column of numbers, likewise."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, pa.py_buffer(column)])


def _row(document: Document) -> dict[str, str | None]:
    rest = {name: value for name, value in document.metadata.items() if name not in OWN and value is not None}
    own = {name: _text(document.metadata.get(name)) for name in OWN}
    more = json.dumps(rest, ensure_ascii=False, sort_keys=True) if rest else None
    return {"id": document.id, "text": document.text, **own, "metadata": more}


def _text(value: Value) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


def read_documents(path: Path, rows: NDArray[np.integer[Any]] | None = None) -> Iterator[Document]:
    """The documents of a file in their order, those of `rows` alone where these are given (sorted)."""
    for row in read_rows(path, ("id", "text", *OWN, "metadata"), rows):
        metadata: dict[str, Value] = {name: row[name] for name in OWN if row[name] is not None}
        if row["metadata"]:
            metadata |= json.loads(row["metadata"])
        yield Document(row["id"], row["text"], metadata)


def read_rows(
    path: Path, columns: Sequence[str], rows: NDArray[np.integer[Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file as mappings. Raises `UserError` where it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                mine = None if rows is None else rows[(rows >= first) & (rows < first + count)] - first
                first += count
                if mine is not None and not len(mine):
                    continue
                for batch in file.iter_batches(AT_ONCE, row_groups=[group], columns=list(columns)):
                    if mine is None:
                        yield from batch.to_pylist()
                        continue
                    here = mine[mine < batch.num_rows].tolist()
                    mine = mine[len(here) :] - batch.num_rows
                    if len(here) > batch.num_rows // 8:
                        every = batch.to_pylist()
                        yield from (every[row] for row in here)
                    else:
                        yield from (one for row in here for one in batch.slice(row, 1).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "corpus/store-unreadable",
            f"{path} can't be read ({str(error).splitlines()[0]}): it is damaged: run the same command again",
        ) from None


def write_columns(path: Path, columns: Mapping[str, Sequence[str | None] | Signal | NDArray[Any]]) -> None:
    """Write columns of numbers and of words beside each other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            name: _numbers(np.ascontiguousarray(column))
            if isinstance(column, np.ndarray)
            else _strings(column, pa.string())
            for name, column in columns.items()
        }
    )
    pq.write_table(table, path, row_group_size=2**16, **(OPTIONS | {"use_dictionary": True}))


def read_columns(path: Path, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Columns by name: numbers as arrays, words as lists. Raises `UserError` where the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(None if names is None else list(names))
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "corpus/columns-unreadable",
            f"{path} can't be read ({str(error).splitlines()[0]}): it is damaged: run the same command again",
        ) from None
    return {
        name: column.to_pylist() if pa.types.is_string(column.type) else _array(column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _array(column: Any) -> NDArray[Any]:
    """A column of numbers without holes; Arrow's own way would import pandas, as `_strings` says."""
    kind = np.dtype(column.type.to_pandas_dtype())
    parts = [
        np.frombuffer(part.buffers()[1], kind, part.offset + len(part))[part.offset :]
        for part in column.chunks
        if len(part)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, kind)

"""Rows of .jsonl and .parquet files as documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json
from coretrain.corpus.document import Document, Trouble
from coretrain.corpus.readers.layouts import Layout
from coretrain.corpus.readers.piece import END, Piece
from coretrain.corpus.readers.streams import opened, plain
from coretrain.corpus.readers.warc import broken
from coretrain.corpus.readers.window import Window

LONGEST_LINE = 2**28
"""Bytes."""
ROWS = 512
"""Of a parquet file that are held at a time."""
MARK = b"\xef\xbb\xbf"
"""What some editors put before the first line."""


def lines(piece: Piece) -> Iterator[tuple[int, bytes] | Trouble]:
    """(place, line without its end) for each that isn't blank; places are bytes of the file, unpacked."""
    with opened(piece.file, piece.packing, piece.start) as read:
        window = Window(read, piece.start)
        while (piece.end == END or window.at < piece.end) and window.has(1):
            at = window.at
            size = window.line(LONGEST_LINE)
            if size > LONGEST_LINE:
                yield Trouble("too-large", piece.name, at, f"a line of more than {LONGEST_LINE} bytes")
                window.find(b"\n")
                window.skip(1)
                continue
            line = window.look(size)
            if window.broken and not line.endswith(b"\n"):
                break  # half a line
            window.skip(size)
            if at == 0:
                line = line.removeprefix(MARK)
            if line.strip():
                yield at, line
        if window.broken:
            yield broken(window, piece.name)


def json_documents(piece: Piece, layout: Layout) -> Iterator[Document | Trouble]:
    """The rows of a .jsonl file; their ids are `FILE#PLACE`, PLACE being a line's first byte, unpacked."""
    for found in lines(piece):
        if isinstance(found, Trouble):
            yield found
            continue
        at, line = found
        try:
            row = from_json(line)
        except ValueError:  # UnicodeDecodeError is one too
            yield Trouble("bad-json", piece.name, at)
            continue
        yield document(row, layout, piece.name, at)


def document(row: Any, layout: Layout, name: str, at: int) -> Document | Trouble:
    """A row as a document."""
    if not isinstance(row, Mapping):
        return Trouble("bad-row", name, at, f"a {type(row).__name__}, no object with fields")
    text = layout.text_of(row)
    if text is None:
        return Trouble("no-text", name, at, f"no text in {layout.text}")
    return Document(f"{name}#{at}", text, {**layout.metadata_of(row), "file": name, "offset": at})


def parquet_documents(piece: Piece, layout: Layout) -> Iterator[Document | Trouble]:
    """The rows of some row groups of a .parquet file; their ids are `FILE#ROW`, counted from 0."""
    import pyarrow as pa

    with plain(piece.file) as file, parquet(file, piece.file) as table:
        columns = [name for name in table.schema_arrow.names if name in layout.columns()]
        at = piece.first_row
        for group in range(piece.start, min(piece.end, table.num_row_groups)):
            after = at + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(ROWS, row_groups=[group], columns=columns):
                    for row in batch.to_pylist():
                        yield document(row, layout, piece.name, at)
                        at += 1
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                yield Trouble("damaged", piece.name, at, f"{after - at} rows can't be read: {_first(error)}")
            at = after


def parquet(file: Any, path: str) -> Any:
    """An opened parquet file. Raises `UserError` where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            "corpus/not-parquet", f"{path} can't be read as parquet ({_first(error)}): make it again or leave it out"
        ) from None


def table_fields(table: Any) -> dict[str, Any]:
    """The fields of a parquet file's rows, as a row without values."""
    import pyarrow as pa

    def below(kind: Any) -> Any:
        return {one.name: below(one.type) for one in kind} if pa.types.is_struct(kind) else None

    return {one.name: below(one.type) for one in table.schema_arrow}


def first_row(piece: Piece) -> Mapping[str, Any] | None:
    """The first of a .jsonl file's first rows that is an object with fields; None where there is none."""
    for number, found in enumerate(lines(piece)):
        if isinstance(found, tuple):
            try:
                row = from_json(found[1])
            except ValueError:
                row = None
            if isinstance(row, dict):
                return row
        if number >= 100:
            break
    return None


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

"""What there is to read, in pieces; and what a piece gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from coretrain.base.errors import UserError
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.readers.cdx import indexed_records
from coretrain.corpus.readers.files import File, survey
from coretrain.corpus.readers.hub import hub_rows
from coretrain.corpus.readers.layouts import AUTO, Layout, check, named, recognised
from coretrain.corpus.readers.members import SIGN
from coretrain.corpus.readers.piece import END, STREAMS, Piece
from coretrain.corpus.readers.rows import (
    document,
    first_row,
    json_documents,
    parquet,
    parquet_documents,
    table_fields,
)
from coretrain.corpus.readers.streams import opened, plain
from coretrain.corpus.readers.warc import (
    packed_as_one,
    packed_records,
    packing_of,
    parsed,
    plain_records,
    seek_plain,
)
from coretrain.corpus.readers.window import Window

PIECE = 2**26
"""Bytes of a file as it lies there."""
INDEX_SHARE = 64
"""A line of an index stands for about so many times its own bytes."""
Read = Page | Document | Trouble


def plan(words: Sequence[str], layout: str = AUTO, piece_bytes: int = PIECE) -> list[Piece]:
    """What `words` mean (files, folders, patterns, `hf:NAME`) in pieces of about `piece_bytes`.

    In the order of the files' names, whatever the order of `words`. `layout` names the layout of rows (`layouts.py`);
    where it is `auto`, each file's is recognised by its first row. Reads the beginnings of files, and around each cut.

    Raises `UserError` where a word means nothing, or a file isn't what its name says or has no layout that is known.
    """
    if piece_bytes < 1:
        raise UserError("corpus/piece-size", f"piece_bytes = {piece_bytes} should be 1 or more")
    asked = None if layout == AUTO else named(layout)
    return [piece for file in survey(words).files for piece in _PLANS[file.kind](file, asked, piece_bytes)]


def read(piece: Piece) -> Iterator[Read]:
    """What a piece holds, in its order: pages of WARC files, documents of all others, and what had to be passed over.

    A WAT file gives documents without a text: title, description and number of links, beside the URL.
    """
    if piece.kind == "warc":
        yield from _crawled(piece)
    elif piece.kind == "cdxj":
        for name, item in indexed_records(piece):
            found = item if isinstance(item, Trouble) else parsed(item[1], item[0], name)
            if found is not None:
                yield found
    elif piece.kind == "jsonl":
        yield from json_documents(piece, named(piece.layout))
    elif piece.kind == "parquet":
        yield from parquet_documents(piece, named(piece.layout))
    elif piece.kind == "hf":
        yield from _hub(piece)
    else:
        raise UserError(
            "corpus/piece-kind-unknown", f"a piece of the input has the kind {piece.kind}: plan the input again"
        )


def _crawled(piece: Piece) -> Iterator[Read]:
    packing = packing_of(piece.file) if piece.packing not in ("", *STREAMS) else None
    with opened(piece.file, piece.packing if piece.packing in STREAMS else "", piece.start) as source:
        window = Window(source, piece.start)
        if packing is None:
            items = plain_records(window, piece.end, piece.name)
        else:
            items = packed_records(window, piece.end, piece.name, packing)
        for item in items:
            found = item if isinstance(item, Trouble) else parsed(item[1], item[0], piece.name)
            if found is not None:
                yield found


def _hub(piece: Piece) -> Iterator[Document | Trouble]:
    layout = None if piece.layout == AUTO else named(piece.layout)
    for number, row in enumerate(hub_rows(piece.file)):
        layout = layout or recognised(row, piece.name)
        if number == 0:
            check(layout, row, piece.name)
        yield document(row, layout, piece.name, number)


def _plan_crawl(file: File, _: Layout | None, piece_bytes: int) -> Iterator[Piece]:
    packing = packing_of(file.path)
    with opened(file.path) as source:
        window = Window(source)
        seek = seek_plain if packing is None else packing.seek
        if window.look(len(SIGN)) != SIGN and not seek(window):
            raise UserError(
                "corpus/not-a-warc",
                f"{file.path} is no WARC file, though its name says so, since no record begins in it: leave it out",
            )
        as_one = packing is not None and window.at == 0 and packed_as_one(window, packing)
    word = "" if packing is None else packing.word
    if as_one:
        yield Piece(file.path, 0, END, "warc", "", file.name, f"{word}-stream")
        return
    for start, end in _cuts(file.path, piece_bytes, seek):
        yield Piece(file.path, start, end, "warc", "", file.name, word)


def _plan_lines(file: File, asked: Layout | None, piece_bytes: int) -> Iterator[Piece]:
    packing = packing_of(file.path)
    whole = Piece(file.path, 0, END, "jsonl", "", file.name, f"{packing.word}-stream" if packing else "")
    row = first_row(whole)
    if row is None and os.path.getsize(file.path) == 0:
        return
    if row is None and asked is None:
        raise UserError(
            "corpus/no-rows",
            f"{file.path} has no row that can be read, so it is damaged or of another kind than its name says: mend it "
            "or leave it out",
        )
    layout = asked or recognised(row or {}, file.path)
    if row is not None:
        check(layout, row, file.path)
    if packing:
        yield replace(whole, layout=layout.name)
        return
    for start, end in _cuts(file.path, piece_bytes, _next_line, before=1):
        yield replace(whole, layout=layout.name, start=start, end=end)


def _plan_index(file: File, _: Layout | None, piece_bytes: int) -> Iterator[Piece]:
    for start, end in _cuts(file.path, max(1, piece_bytes // INDEX_SHARE), _next_line, before=1):
        yield Piece(file.path, start, end, "cdxj", "", file.name)


def _plan_table(file: File, asked: Layout | None, piece_bytes: int) -> Iterator[Piece]:
    with plain(file.path) as source, parquet(source, file.path) as table:
        fields = table_fields(table)
        layout = asked or recognised(fields, file.path)
        check(layout, fields, file.path)
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
    start, size, row, rows = 0, 0, 0, 0
    for number, group in enumerate(groups, 1):
        size, rows = size + group.total_byte_size, rows + group.num_rows
        if size >= piece_bytes or number == len(groups):
            yield Piece(file.path, start, number, "parquet", layout.name, file.name, "", row)
            start, size, row, rows = number, 0, row + rows, 0


def _plan_hub(file: File, asked: Layout | None, _: int) -> Iterator[Piece]:
    yield Piece(file.path, 0, END, "hf", asked.name if asked else AUTO, file.name)


_PLANS = {
    "warc": _plan_crawl,
    "jsonl": _plan_lines,
    "cdxj": _plan_index,
    "parquet": _plan_table,
    "hf": _plan_hub,
}


def _cuts(path: str, piece_bytes: int, seek: Callable[[Window], bool], before: int = 0) -> Iterator[tuple[int, int]]:
    """(start, end) of pieces, cut at the first record that begins at or behind each multiple of `piece_bytes`.

    `seek` goes to where a record begins, from `before` bytes before the place; it says whether there is one.
    """
    size, start, aim = os.path.getsize(path), 0, piece_bytes
    while aim < size:
        with opened(path, "", aim - before) as source:
            window = Window(source, aim - before)
            if not seek(window):
                break
        yield start, window.at
        start = window.at
        aim = (start // piece_bytes + 1) * piece_bytes
    if start < size:
        yield start, size


def _next_line(window: Window) -> bool:
    found = window.find(b"\n")
    window.skip(1)
    return found and window.has(1)

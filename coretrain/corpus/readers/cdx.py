"""An index of a crawl (CDXJ): only the records that it names are read, each from its range of a local WARC file.

A line is a key, a time and a JSON object with `filename`, `offset` and `length`, as Common Crawl and pywb write it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json, shown
from coretrain.corpus.document import Trouble
from coretrain.corpus.readers.members import LARGEST, Packing
from coretrain.corpus.readers.piece import END, Piece
from coretrain.corpus.readers.rows import lines
from coretrain.corpus.readers.streams import plain
from coretrain.corpus.readers.warc import Item, packed_records, packing_of, plain_records
from coretrain.corpus.readers.window import Window

MOST_OPEN = 16
"""WARC files that are open at a time."""


def indexed_records(piece: Piece) -> Iterator[tuple[str, Item]]:
    """(name of a WARC file, a record of it or what is wrong there) for each line.

    File names are looked for beside the index: whole (`crawl/segments/.../x.warc.gz`), or their last part alone.
    Raises `UserError` where such a file isn't there.
    """
    folder = Path(piece.file).parent
    with contextlib.ExitStack() as stack:
        files = dict[Path, tuple[BinaryIO, Packing | None]]()
        for found in lines(piece):
            place = _place(found[1]) if isinstance(found, tuple) else None
            if isinstance(found, Trouble):
                yield piece.name, found
                continue
            if place is None:
                yield piece.name, Trouble("bad-line", piece.name, found[0], "no filename, offset and length in JSON")
                continue
            name, offset, length = place
            path = _local(folder, name, piece.file)
            if path not in files:
                if len(files) == MOST_OPEN:
                    stack.close()
                    files.clear()
                files[path] = stack.enter_context(plain(str(path))), packing_of(str(path))
            source, packing = files[path]
            source.seek(offset)
            raw = source.read(length)
            if not raw:
                yield path.name, Trouble("truncated", path.name, offset, "the file ends before it")
            for item in _records(raw, path.name, packing):
                if isinstance(item, Trouble):
                    yield path.name, Trouble(item.kind, path.name, offset, item.words)
                else:
                    yield path.name, (offset, item[1])


def _records(raw: bytes, name: str, packing: Packing | None) -> Iterator[Item]:
    window = Window(io.BytesIO(raw).read)
    return packed_records(window, END, name, packing) if packing else plain_records(window, END, name)


def _place(line: bytes) -> tuple[str, int, int] | None:
    """(file name, offset, length) of a line; None where it has none."""
    begin = line.find(b"{")
    try:
        said = from_json(line[begin:] if begin >= 0 else b"{}")
        name, offset, length = said["filename"], _number(said["offset"]), _number(said["length"])
    except (ValueError, TypeError, KeyError):
        return None
    return (name, offset, length) if isinstance(name, str) and name and 0 < length <= LARGEST else None


def _number(said: object) -> int:
    """A place or a length: the format has them as texts, some tools as numbers. Raises ValueError."""
    if not isinstance(said, str | int) or isinstance(said, bool) or not 0 <= int(said) < 2**62:
        raise ValueError
    return int(said)


def _local(folder: Path, name: str, index: str) -> Path:
    for path in (folder / name.lstrip("/"), folder / Path(name).name):
        if ".." not in Path(name).parts and path.is_file():
            return path
    raise UserError(
        "corpus/index-file-missing",
        f"{index} tells of {shown(name)}, which isn't in {folder}: put that file there, or leave its lines out",
    )

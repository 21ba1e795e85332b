"""The last stage: what is kept, and the list of what isn't, each in files of a fixed number of documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.applied import Applied
from coretrain.corpus.pipeline.alike import reasons_in
from coretrain.corpus.pipeline.select import reasons
from coretrain.corpus.store import Writer, read_columns, read_documents, read_rows, write_columns


@dataclass(frozen=True)
class Slice:
    """Documents of one piece that go into one file: the first and one past the last, counted among its own kind."""

    piece: int
    begin: int
    end: int


def cut(counts: Sequence[int], size: int) -> list[list[Slice]]:
    """Files of `size` documents each, out of pieces that have `counts`: how the input was cut changes nothing."""
    files: list[list[Slice]] = []
    room = 0
    for piece, count in enumerate(counts):
        begin = 0
        while begin < count:
            if not room:
                files.append([])
                room = size
            end = min(count, begin + room)
            files[-1].append(Slice(piece, begin, end))
            room -= end - begin
            begin = end
    return files


def write_documents(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """The task: texts and reasons of some pieces to one file of documents; `slices` has their (begin, end)."""
    documents = size = 0
    with Writer(outputs[0]) as writer:
        for texts, found, (begin, end) in zip(inputs[::2], inputs[1::2], arguments["slices"], strict=True):
            rows = np.flatnonzero(reasons_in(found) < 0)[begin:end]
            for one in read_documents(texts, rows):
                writer.add([one])
                documents += 1
                size += len(one.text.encode())
    return {"documents": documents, "bytes": size}


def write_dropped(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """The task: texts, signals, reasons and lists of copies (`copies` of them) of some pieces to one file of what was
    dropped, and why.
    """
    recipe = Applied(arguments["recipe"])
    named = reasons(recipe)
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "url", "rule", "value", "limit", "copy_of")}
    step = 3 + arguments["copies"]
    for index, (begin, end) in enumerate(arguments["slices"]):
        texts, signals, found, *copies = inputs[index * step : (index + 1) * step]
        numbers = reasons_in(found)
        rows = np.flatnonzero(numbers >= 0)[begin:end]
        who = _who(texts, rows)
        copy_of = {row: name for path in copies for row, name in _copies(path).items()}
        values = _values(recipe, signals, numbers, rows)
        for row, (id_, url), (value, limit) in zip(rows.tolist(), who, values, strict=True):
            columns["id"].append(id_)
            columns["url"].append(url)
            columns["rule"].append(named[numbers[row]])
            columns["value"].append(value)
            columns["limit"].append(limit)
            columns["copy_of"].append(copy_of.get(row))
    numeric: dict[str, Any] = {name: np.array(columns[name], np.float64) for name in ("value", "limit")}
    write_columns(outputs[0], {**columns, **numeric})
    return {"documents": len(columns["id"])}


def _who(texts: Path, rows: NDArray[np.intp]) -> Iterator[tuple[str, str | None]]:
    return ((row["id"], row["url"]) for row in read_rows(texts, ("id", "url"), rows))


def _copies(path: Path) -> dict[int, str]:
    found = read_columns(path)
    return dict(zip(found["row"].tolist(), found["of"], strict=True))


def _values(
    recipe: Applied, signals: Path, numbers: NDArray[np.int16], rows: NDArray[np.intp]
) -> list[tuple[float, float]]:
    """What each row's rule held against it: the signal, and the limit that it passes; NaN where there is none."""
    rules = recipe.every_rule()
    used = sorted({rules[number].signal for number in np.unique(numbers[rows]).tolist() if number < len(rules)})
    columns = read_columns(signals, used) if used else {}
    found = []
    for row in rows.tolist():
        number = int(numbers[row])
        if number >= len(rules):
            found.append((np.nan, np.nan))
            continue
        rule = rules[number]
        value = float(columns[rule.signal][row])
        under = rule.least is not None and value < rule.least
        limit = rule.least if under else rule.most
        found.append((value, np.nan if limit is None else float(limit)))
    return found

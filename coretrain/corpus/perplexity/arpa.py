"""The ARPA format: a text that KenLM and others read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from coretrain.base.files import write_atomically
from coretrain.corpus.perplexity.lines import MARKS
from coretrain.corpus.perplexity.model import Model


def save_arpa(model: Model, path: Path) -> str:
    """Write the model; returns the file's SHA-256. Whoever scores by it must normalize text as `lines` does, and put a
    blank between words.
    """
    return write_atomically(path, *_parts(model))


def _parts(model: Model) -> Iterator[str]:
    yield "\\data\\\n"
    for n, table in enumerate(model.tables, start=1):
        yield f"ngram {n}={len(table.keys)}\n"
    size = len(model.tables[0].keys)
    below: list[str] = [""]
    for n, table in enumerate(model.tables, start=1):
        yield f"\n\\{n}-grams:\n"
        last = n == model.order
        if n == 1:
            grams = [*MARKS, *model.words]
        else:
            words = [*MARKS, *model.words]
            grams = [f"{below[key // size]} {words[key % size]}" for key in table.keys.tolist()]
        rows = zip(table.log_probability.tolist(), grams, table.log_backoff.tolist(), strict=True)
        yield "".join(f"{p:.7g}\t{gram}\n" if last else f"{p:.7g}\t{gram}\t{b:.7g}\n" for p, gram, b in rows)
        below = grams
    yield "\n\\end\\\n"

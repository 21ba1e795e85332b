"""The first stage: a piece of the input to texts, signals beside them, and what couldn't be read."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.files import sha256_of
from coretrain.corpus.applied import Applied
from coretrain.corpus.decontaminate.hits import write_hits
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.extract.guarded import guarded
from coretrain.corpus.pipeline.annotate import Annotated, Steps, batched
from coretrain.corpus.readers.open import read
from coretrain.corpus.readers.piece import Piece
from coretrain.corpus.steps import LEARNED
from coretrain.corpus.store import Writer, write_columns
from coretrain.tokenizers.tokenizer import well_formed

WORDS = ("source", "language")
"""Metadata that lie beside the signals too: the report counts by them."""


def hash_input(arguments: Any, inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """The task: the hash of an input file."""
    return {"sha256": sha256_of(Path(arguments["file"]))}


def read_piece(arguments: Mapping[str, Any], inputs: list[Path], outputs: list[Path]) -> dict[str, Any]:
    """The task: `arguments` has `piece` and `reading`, `inputs` what was `learned` for a step; `outputs` are texts,
    signals, troubles, and where benchmarks stand.
    """
    reading, rules = arguments["reading"], Applied(arguments["reading"])
    piece = Piece.from_dict(arguments["piece"])
    options = {step: dict(own) for step, own in reading["options"].items()}
    for step, path in zip(arguments["learned"], inputs, strict=True):
        options[step][LEARNED[step]] = str(path)
    steps = Steps(reading["steps"], options, {name: rules.active(name) for name in reading["gates"]})
    told = Told(time.perf_counter())
    texts, signals, troubles, hits = outputs
    parts: list[Annotated] = []
    extract = reading["extract"]
    extractor = Extractor(extract["kind"], extract["deadline"], extract["memory"] // 2**20)
    with Writer(texts) as writer:
        for batch in batched(told.documents(guarded(told.counted(read(piece)), extractor))):
            found = steps.run(batch)
            writer.add(found.documents)
            parts.append(Annotated([replace(one, text="") for one in found.documents], found.columns))
    parts.append(steps.run([]))
    held = [one for part in parts for one in part.documents]
    words = {name: [_word(one, name) for one in held] for name in WORDS}
    numbers = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[-1].columns}
    write_columns(signals, words | dict(sorted(numbers.items())))
    troubles.write_text("".join(f"{line}\n" for line in told.troubles), encoding="utf-8")
    contaminated = write_hits(hits, steps.hits)
    seconds = {"read and extract": time.perf_counter() - told.began - sum(steps.seconds.values())} | steps.seconds
    return {
        "documents": len(held),
        "pages": told.pages,
        "page_bytes": told.page_bytes,
        "contaminated": contaminated,
        "troubles": dict(sorted(told.kinds.items())),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _word(document: Document, name: str) -> str | None:
    value = document.metadata.get(name)
    return value if isinstance(value, str) and value else None


class Told:
    """Counts what passes by."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.pages = self.page_bytes = 0
        self.kinds: Counter[str] = Counter()
        self.troubles: list[str] = []

    def counted(self, found: Iterable[Page | Document | Trouble]) -> Iterator[Page | Document | Trouble]:
        """The same, its pages counted."""
        for one in found:
            if isinstance(one, Page):
                self.pages += 1
                self.page_bytes += len(one.body)
            yield one

    def documents(self, found: Iterable[Document | Trouble]) -> Iterator[Document]:
        """The documents alone, as texts that UTF-8 can hold; troubles are noted."""
        for one in found:
            if isinstance(one, Trouble):
                self.kinds[one.kind] += 1
                said = {"kind": one.kind, "file": one.file, "offset": one.offset, "words": one.words}
                self.troubles.append(json.dumps(said, ensure_ascii=True))
                continue
            metadata = {key: well_formed(v) if isinstance(v, str) else v for key, v in one.metadata.items()}
            yield Document(well_formed(one.id), well_formed(one.text), metadata)

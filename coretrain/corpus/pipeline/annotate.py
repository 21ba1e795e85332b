"""Steps over a batch of documents, with gates: what a gate's rules drop goes through no later step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coretrain.corpus.decontaminate.hits import Hit
from coretrain.corpus.decontaminate.step import Decontaminate
from coretrain.corpus.document import Batch, Document, Signal, Step
from coretrain.corpus.rules import Rule, first_broken
from coretrain.corpus.steps import made

CHARACTERS = 2**21
"""Of a batch: what its steps hold in memory is some twenty times as much."""
GATED = "gated"
"""Signal of every document: the place, in the recipe's gates, of the one that stopped it; -1."""


@dataclass
class Annotated:
    """Documents with their final texts, and columns beside them."""

    documents: list[Document]
    columns: dict[str, Signal] = field(default_factory=dict)


class Steps:
    """The steps of a recipe; `hits` gathers where benchmarks stand, as (id, text, places)."""

    def __init__(self, names: Sequence[str], options: Mapping[str, Mapping[str, Any]], gates: Mapping[str, list[Rule]]):
        """`gates`: the rules to apply after a step, by its name."""
        self.hits: list[tuple[str, str, list[Hit]]] = []
        self.steps: list[Step] = [made(name, options.get(name, {})) for name in names]
        self.gates = gates
        self.seconds = dict.fromkeys(names, 0.0)

    def run(self, documents: Sequence[Document]) -> Annotated:
        """The documents after all steps, and a column for each signal; NaN where a gate had stopped the document."""
        import time

        held = list(documents)
        columns: dict[str, Signal] = {
            "text.extracted": np.array([len(one.text.strip()) for one in held], np.float64),
            "text.bytes_read": np.array([len(one.text.encode()) for one in held], np.float64),
            GATED: np.full(len(held), -1.0),
        }
        alive = np.flatnonzero(columns["text.extracted"] > 0)
        for step in self.steps:
            began = time.perf_counter()
            given = {name: column[alive] for name, column in columns.items()}
            before = Batch([held[row] for row in alive.tolist()], given)
            batch = step.run(before)
            if isinstance(step, Decontaminate):
                self._note(step, before, batch)
            for row, document in zip(alive.tolist(), batch.documents, strict=True):
                held[row] = document
            for name, signal in batch.signals.items():
                if name not in given:
                    columns[name] = np.full(len(held), np.nan)
                    columns[name][alive] = signal
            if rules := self.gates.get(step.name):
                gone = first_broken(rules, batch.signals, len(alive)) >= 0
                columns[GATED][alive[gone]] = list(self.gates).index(step.name)
                alive = alive[~gone]
            self.seconds[step.name] += time.perf_counter() - began
        columns["text.characters"] = np.array([len(one.text.strip()) for one in held], np.float64)
        columns["text.bytes"] = np.array([len(one.text.encode()) for one in held], np.float64)
        return Annotated(held, columns)

    def _note(self, step: Decontaminate, before: Batch, after: Batch) -> None:
        """Look once more where a benchmark stands, in the few documents that have one."""
        rows = np.flatnonzero(after.signals[f"{step.name}.hits"] > 0).tolist()
        some = [before.documents[row] for row in rows]
        places = step.found(Batch(some)) if some else []
        self.hits += [(one.id, one.text, mine) for one, mine in zip(some, places, strict=True)]


def batched(documents: Iterable[Document], most: int = CHARACTERS) -> Iterator[list[Document]]:
    """Lists of some million characters."""
    batch: list[Document] = []
    size = 0
    for one in documents:
        batch.append(one)
        size += len(one.text) + 64
        if size >= most:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

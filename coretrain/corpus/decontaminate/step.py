"""What is done about hits: the document goes, or what was hit is cut out of it with a margin.

Source of cutting: Smith et al. 2022 (Megatron-Turing NLG) after Brown et al. 2020: 200 characters on each side go too,
pieces of less than 200 characters go, and documents that fall into more than 10 pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError, meant
from coretrain.base.parse import shown
from coretrain.corpus.decontaminate.hits import Hit, find
from coretrain.corpus.decontaminate.index import Index, read_index
from coretrain.corpus.document import Batch
from coretrain.corpus.rules import Rule

MODES = ("drop", "cut")
GAP = "\n\n"
"""Between the pieces of a document that was cut."""


@dataclass(frozen=True)
class Decontaminate:
    """Looks for benchmarks in each document; with `cut` it cuts them out. Raises `UserError` for a bad field.

    Signals: `decontaminate.hits`, `decontaminate.cuts` (0 with `drop`), `decontaminate.left` (characters, where
    it was cut).
    """

    index: str
    mode: str = field(default="drop", metadata={"meaning": "drop the document, or cut what was hit out of it"})
    margin: int = field(default=200, metadata={"meaning": "characters cut on each side"})
    piece: int = field(default=200, metadata={"meaning": "characters that a piece must have"})
    cuts: int = field(default=10, metadata={"meaning": "a document that is cut more often is dropped"})
    name: str = "decontaminate"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(
                "corpus/decontaminate-mode",
                f"{meant(str(self.mode), MODES)}decontaminate.mode = {shown(self.mode)}: use one of {', '.join(MODES)}",
            )
        for one in ("margin", "piece", "cuts"):
            if getattr(self, one) < 0:
                raise UserError(
                    "corpus/decontaminate-number",
                    f"decontaminate.{one} = {shown(getattr(self, one))}: give 0 or more",
                )

    def found(self, batch: Batch) -> list[list[Hit]]:
        """The hits in each document."""
        return find(batch.texts, opened(Path(self.index)))

    def run(self, batch: Batch) -> Batch:
        """The batch with its signals, and with `cut` its texts without what was hit."""
        hits = self.found(batch)
        texts, cuts = list(batch.texts), [0] * len(hits)
        if self.mode == "cut":
            for at, (text, mine) in enumerate(zip(batch.texts, hits, strict=True)):
                if mine:
                    pieces, cuts[at] = cut(text, mine, self.margin, self.piece)
                    texts[at] = GAP.join(pieces)
        left = [len(text) if times else np.nan for text, times in zip(texts, cuts, strict=True)]
        signals = {
            f"{self.name}.hits": np.array([len(one) for one in hits], np.float64),
            f"{self.name}.cuts": np.array(cuts, np.float64),
            f"{self.name}.left": np.array(left, np.float64),
        }
        return batch.with_texts(texts).with_signals(signals)

    def rules(self) -> list[Rule]:
        """Which documents go."""
        source = "Brown et al. 2020; Smith et al. 2022"
        if self.mode == "drop":
            return [Rule("decontaminate.hits", f"{self.name}.hits", "has words of a benchmark", most=0, source=source)]
        nothing = "nothing is left beside what was cut for benchmarks"
        often = f"is cut more than {self.cuts} times for benchmarks"
        return [
            Rule("decontaminate.cuts", f"{self.name}.cuts", often, most=self.cuts, source=source),
            Rule("decontaminate.left", f"{self.name}.left", nothing, least=1, source=source),
        ]


def opened(path: Path) -> Index:
    """An index, read once however often it is asked for. Raises `UserError`."""
    try:
        facts = path.stat()
    except OSError:
        return read_index(path)  # which says why
    return _opened(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=4)
def _opened(path: Path, changed: int, size: int) -> Index:
    return read_index(path)


def cut(text: str, hits: Sequence[Hit], margin: int, shortest: int) -> tuple[list[str], int]:
    """The pieces of `shortest` characters or more that are left without the hits and a margin on each side of them;
    and how many cuts there were: hits whose margins touch are one."""
    spans: list[list[int]] = []
    for begin, end in sorted((max(0, hit.begin - margin), min(len(text), hit.end + margin)) for hit in hits):
        if spans and begin <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], end)
        else:
            spans.append([begin, end])
    borders = [0, *(place for span in spans for place in span), len(text)]
    pieces = [text[begin:end] for begin, end in zip(borders[::2], borders[1::2], strict=True)]
    return [one for one in pieces if one and len(one) >= shortest], len(spans)

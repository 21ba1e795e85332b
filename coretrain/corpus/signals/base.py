"""What the steps share that compute numbers out of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.document import Batch, Signal
from coretrain.corpus.text.spans import Mask
from coretrain.corpus.text.texts import Splitter, Texts, blocks

Counting = Literal["default", "datatrove"]
"""`datatrove` counts as datatrove 0.10 does, oddities included, whatever the language; each step says where they
differ."""


def check_option(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise `UserError` where an option of a step is out of its range."""
    if not least <= value <= most:
        upper = "" if most == math.inf else f" to {most:g}"
        raise UserError("corpus/option-range", f"{name} = {value:g} should be from {least:g}{upper or ' up'}")


def check_counting(step: str, counting: str) -> None:
    """Raise `UserError` for another way of counting than there is."""
    if counting not in get_args(Counting):
        raise UserError(
            "corpus/counting-unknown",
            f"{step}.counting = {shown(counting)} should be {' or '.join(get_args(Counting))}",
        )


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> Signal:
    """`part / whole` in float64; NaN where the whole is 0."""
    out = np.full(len(whole), np.nan)
    np.divide(part, whole, out=out, where=whole != 0)
    return out


def without(signal: NDArray[Any], documents: Mask) -> Signal:
    """The signal as float64, NaN for these documents."""
    out = signal.astype(np.float64)
    out[documents] = np.nan
    return out


@dataclass(frozen=True)
class TextStep:
    """A step that gives signals and leaves the text alone: subclasses say what to compute of a block of texts."""

    counting: Counting = "default"
    splitter: Splitter | None = None
    """Words by another tool; `coretrain.corpus.text.words` where there is none."""

    name = ""

    def __post_init__(self) -> None:
        """Raise `UserError` for options that can't be."""
        check_counting(self.name, self.counting)

    def signals(self, texts: Texts, languages: list[str]) -> Mapping[str, Signal]:
        """The signals of these texts. `languages` has a code for each, "" where it isn't known."""
        raise NotImplementedError

    def run(self, batch: Batch) -> Batch:
        """The batch with these signals beside it."""
        languages = languages_of(batch)
        parts = [self.signals(texts, languages[place]) for place, texts in blocks(batch.texts, self.splitter)] or [
            self.signals(Texts([]), [])
        ]
        found = {f"{self.name}.{key}": np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return batch.with_signals(found)

    def foreign(self, texts: Texts) -> Mask:
        """[D] Texts that this step's rules for words say nothing about: those in scripts without blanks."""
        if self.counting == "datatrove":
            return np.zeros(len(texts.strings), np.bool_)
        return texts.unspaced


def languages_of(batch: Batch) -> list[str]:
    """Each document's language as its metadata have it, "" where they don't."""
    return [str(one.metadata.get("language") or "") for one in batch.documents]

"""The step that scores texts by a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.document import Batch, Signal
from coretrain.corpus.perplexity.lines import normalized_blocks
from coretrain.corpus.perplexity.model import load

Scorer = Callable[[Sequence[str]], Signal]
_KENLM = (".arpa", ".bin", ".binary", ".klm")


@dataclass(frozen=True)
class Perplexity:
    """Signal `perplexity.value`: 10 to the power of minus the mean log10 probability of a word, line ends counted as
    words; NaN of a text without words. Fluent text like that which the model was trained on has a low one.

    `model` is a file of `coretrain.corpus.perplexity.train`, or one that KenLM reads (.arpa, .bin), which needs the
    package kenlm and gets the same words. Raises `UserError` where the model or that package is missing.
    """

    model: str
    name = "perplexity"

    def run(self, batch: Batch) -> Batch:
        """The batch with this signal."""
        return batch.with_signals({"perplexity.value": _scorer(self.model)(batch.texts)})


@cache
def _scorer(path: str) -> Scorer:
    if not path:
        raise UserError("corpus/perplexity-model-not-named", "perplexity.model names no model: train one, and name it")
    if not path.endswith(_KENLM):
        return load(Path(path)).perplexities
    try:
        import kenlm  # type: ignore[import-not-found, unused-ignore]  # optional, without types
    except ImportError:
        raise UserError(
            "corpus/kenlm-missing",
            f"{shown(path)} is a model for KenLM, which isn't installed: pip install kenlm, or train one here",
        ) from None
    try:
        model = kenlm.Model(path)
    except OSError:
        raise UserError(
            "corpus/kenlm-model-unreadable",
            f"KenLM can't read the model {shown(path)}: correct its path, or make it anew",
        ) from None
    return lambda texts: _by_kenlm(model, texts)


def _by_kenlm(model: Any, texts: Sequence[str]) -> Signal:
    out = []
    for block in normalized_blocks(texts):
        words, lines = block.words, block.lines
        first = np.searchsorted(words.starts, np.append(lines.starts, len(block.points) + 1)).tolist()
        whole = "".join(block.strings)
        parts = [whole[a:b] for a, b in zip(words.starts.tolist(), words.ends.tolist(), strict=True)]
        for begin, end in zip(lines.first[:-1].tolist(), lines.first[1:].tolist(), strict=True):
            spans = [(first[at], first[at + 1]) for at in range(begin, end) if first[at] < first[at + 1]]
            total = sum(model.score(" ".join(parts[a:b]), bos=True, eos=True) for a, b in spans)
            count = sum(b - a + 1 for a, b in spans)
            out.append(10 ** (-total / count) if count else np.nan)
    return np.array(out, np.float64)

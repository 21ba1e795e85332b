"""The step that scores texts by a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.corpus.classify.model import Classifier, load
from coretrain.corpus.document import Batch


@dataclass(frozen=True)
class Quality:
    """Signal `quality.score`: the probability, from 0 to 1, of a text's being like the good examples of `model`, a file
    of `coretrain.corpus.classify.model`. Raises `UserError` where it is missing or damaged.
    """

    model: str
    name = "quality"

    def run(self, batch: Batch) -> Batch:
        """The batch with this signal."""
        return batch.with_signals({"quality.score": _classifier(self.model).scores(batch.texts)})


@cache
def _classifier(path: str) -> Classifier:
    if not path:
        raise UserError("corpus/classifier-not-named", "quality.model names no classifier: train one, and name it")
    return load(Path(path))

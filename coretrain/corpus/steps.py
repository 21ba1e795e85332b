"""The steps that a recipe may name, and where each is."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from coretrain.corpus.document import Step

DECONTAMINATE = "decontaminate"
STEPS = {
    "url": "coretrain.corpus.signals.url:Url",
    "language": "coretrain.corpus.signals.language:Language",
    "gopher_repetition": "coretrain.corpus.signals.repetition:GopherRepetition",
    "gopher": "coretrain.corpus.signals.gopher:Gopher",
    "unspaced": "coretrain.corpus.signals.unspaced:Unspaced",
    "page": "coretrain.corpus.signals.page:Page",
    "c4": "coretrain.corpus.signals.c4:C4",
    "refinedweb": "coretrain.corpus.signals.refinedweb:RefinedWeb",
    "fineweb": "coretrain.corpus.signals.fineweb:FineWeb",
    "perplexity": "coretrain.corpus.perplexity.step:Perplexity",
    "quality": "coretrain.corpus.classify.step:Quality",
    "adult": "coretrain.corpus.signals.word_lists:WordList",
    "violence": "coretrain.corpus.signals.word_lists:WordList",
    "pii": "coretrain.corpus.signals.pii:Pii",
    DECONTAMINATE: "coretrain.corpus.decontaminate.step:Decontaminate",
}
"""By name: the class."""
LEARNED = {DECONTAMINATE: "index", "perplexity": "model", "quality": "model"}
"""Steps that may use what was made of the user's files before anything is read: their option that names it."""
NOT_OPTIONS = {"adult": ("name",), "violence": ("name",), DECONTAMINATE: ("name", "index", "cuts")}
"""Fields of a step's class that its name, or another part of the recipe, gives."""


@functools.cache
def step_class(name: str) -> type[Any]:
    """The class of a step, a dataclass whose fields are its options."""
    module, _, own = STEPS[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), own)
    return found


def made(name: str, options: Mapping[str, Any]) -> Step:
    """A step with these options. Raises `UserError` where it lacks something that must be installed or given."""
    named = {"name": name} if name in ("adult", "violence") else {}
    step: Step = step_class(name)(**named, **options)
    return step

"""Rules that look at a document's language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.corpus.document import Signal
from coretrain.corpus.rules import Rule
from coretrain.corpus.signals.language import LANGUAGES

NUMBER = "language.number"


@dataclass(frozen=True)
class RuleOfLanguage(Rule):
    """A rule for the documents of one language; it says nothing against others."""

    language: str = ""

    def keeps(self, signals: Mapping[str, Signal]) -> NDArray[np.bool_]:
        """Which documents it keeps."""
        others: NDArray[np.bool_] = signals[NUMBER] != number_of(self.language)
        return super().keeps(signals) | others


@dataclass(frozen=True)
class RuleOfLanguages(Rule):
    """Keeps the documents of these languages. One whose language wasn't told (NaN) is kept."""

    languages: tuple[str, ...] = ()

    def keeps(self, signals: Mapping[str, Signal]) -> NDArray[np.bool_]:
        """Which documents it keeps."""
        numbers = signals[NUMBER]
        return np.isin(numbers, [number_of(code) for code in self.languages]) | np.isnan(numbers)


def keep_languages(codes: tuple[str, ...], name: str = "language.keep") -> RuleOfLanguages:
    """The rule that keeps these languages. Raises `UserError` where there is no such code."""
    for code in codes:
        number_of(code)
    return RuleOfLanguages(
        name, NUMBER, f"another language than {', '.join(codes)}", source="the recipe", languages=codes
    )


def number_of(code: str) -> int:
    """A language's number in the signal `language.number`. Raises `UserError` where there is no such code."""
    if code not in LANGUAGES:
        raise UserError(
            "corpus/language-unknown",
            f"{shown(code)} is no language that the model knows: write a code such as en or zh",
        )
    return LANGUAGES.index(code)

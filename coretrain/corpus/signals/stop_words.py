"""Stop words: Gopher's eight of English, and for other languages the most frequent words as FineWeb-2 lists them."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher (Rae et al., 2021)."""

_OTHERS = {
    "de": "der und die in von im den des mit das er dem als wurde für",  # codespell:ignore als
    "es": "de la en el y a que del los se por un con una las su",
    "fr": "de la le et à en l' des du les est d' un une il dans par au",
    "ru": "в и на с года по году из был к не от что за для его как а он также до после",
}
STOP_WORDS = {"en": ENGLISH} | {code: tuple(words.split()) for code, words in _OTHERS.items()}
"""By language code. FineWeb-2's configurations for deu_Latn, spa_Latn, fra_Latn and rus_Cyrl."""

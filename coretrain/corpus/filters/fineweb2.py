"""FineWeb-2's limits for some languages (Penedo et al., 2025; its repository's configurations, 2025).

They were made for words as spaCy and others cut them, and for GlotLID's probabilities; here they hold our own. For
languages without blanks, limits on n words hold 2 n characters, and those on lengths of words are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coretrain.corpus.filters.limits import Kind, Limit

_SOURCE = "FineWeb-2's configuration {}"


@dataclass(frozen=True)
class _Numbers:
    """A language's numbers, in the order of the configuration's fields."""

    configuration: str
    duplicate_lines: float
    repeated: tuple[float, ...]
    """5 to 10 words."""
    score: float
    punctuated: float
    mean_word: tuple[float, float]
    alpha: float
    newlines: float
    top: tuple[float, float, float]


_TABLE = {
    "de": _Numbers(
        "deu_Latn",
        0.263,
        (0.141, 0.134, 0.126, 0.117, 0.108, 0.098),
        0.821,
        0.0,
        (0, 15),
        0.774,
        0.152,
        (0.169, 0.153, 0.137),
    ),
    "es": _Numbers(
        "spa_Latn",
        0.265,
        (0.152, 0.137, 0.123, 0.114, 0.107, 0.099),
        0.84,
        0.3,
        (4, 14),
        0.825,
        0.171,
        (0.077, 0.097, 0.112),
    ),
    "fr": _Numbers(
        "fra_Latn",
        0.264,
        (0.15, 0.141, 0.131, 0.121, 0.111, 0.1),
        0.824,
        0.1,
        (2, 11),
        0.812,
        0.185,
        (0.161, 0.149, 0.134),
    ),
    "ja": _Numbers(
        "jpn_Jpan",
        0.375,
        (0.307, 0.283, 0.264, 0.248, 0.234, 0.223),
        0.886,
        0.167,
        (1, 5),
        0.759,
        0.162,
        (0.121, 0.129, 0.145),
    ),
    "ru": _Numbers(
        "rus_Cyrl",
        0.322,
        (0.168, 0.156, 0.145, 0.133, 0.121, 0.109),
        0.9,
        0.231,
        (3, 11),
        0.713,
        0.139,
        (0.184, 0.164, 0.146),
    ),
    "th": _Numbers(
        "tha_Thai",
        0.349,
        (0.185, 0.168, 0.152, 0.137, 0.124, 0.111),
        0.9,
        0.0,
        (2, 10),
        0.9,
        0.153,
        (0.221, 0.197, 0.162),
    ),
    "zh": _Numbers(
        "cmn_Hani",
        0.287,
        (0.198, 0.182, 0.167, 0.154, 0.14, 0.127),
        0.692,
        0.106,
        (1, 5),
        0.735,
        0.178,
        (0.256, 0.201, 0.171),
    ),
}
_UNSPACED = ("ja", "th", "zh")


def limits_of(code: str) -> tuple[Limit, ...]:
    """The limits of one language in FineWeb-2's order, named `fineweb2_CODE.*`; they hold for its documents alone."""
    one = _TABLE[code]

    def limit(field: str, signal: str, value: float, what: str, kind: Kind = "fraction") -> Limit:
        side: Literal["least", "most"] = "least" if field.startswith("min_") else "most"
        source = _SOURCE.format(one.configuration)
        return Limit(f"fineweb2_{code}.{field}", signal, side, value, kind, what, source, code)

    spaced = code not in _UNSPACED
    grams, scale = ("gopher_repetition", 1) if spaced else ("unspaced", 2)
    out = [
        limit("min_score", "language.score", one.score, "probability of its language"),
        limit(
            "max_duplicate_lines",
            "gopher_repetition.duplicate_lines",
            one.duplicate_lines,
            "fraction of repeated lines",
        ),
    ]
    for n, value in zip((2, 3, 4), one.top, strict=True):
        key = f"top_{scale * n}_gram"
        out.append(
            limit(
                f"max_{key}",
                f"{grams}.{key}",
                value,
                f"fraction of characters in the {key.replace('_', ' ')}",
                "number",
            )
        )
    for n, value in zip(range(5, 11), one.repeated, strict=True):
        key = f"duplicate_{scale * n}_gram"
        out.append(limit(f"max_{key}", f"{grams}.{key}", value, f"fraction in repeated {scale * n}-grams"))
    if spaced:
        length, least, most = "gopher.mean_word_length", *one.mean_word
        out += [
            limit("min_mean_word_length", length, least, "characters a word", "number"),
            limit("max_mean_word_length", length, most, "characters a word", "number"),
            limit("min_alpha_words", "gopher.alpha_words", one.alpha, "fraction of words with a letter"),
            limit("max_newlines_per_word", "fineweb.newlines_per_word", one.newlines, "line ends a word", "number"),
        ]
    out.append(
        limit(
            "min_punctuated_lines",
            "fineweb.punctuated_lines",
            one.punctuated,
            "fraction of lines that end as sentences do",
        )
    )
    return tuple(out)


FINEWEB2: dict[str, tuple[Limit, ...]] = {code: limits_of(code) for code in _TABLE}
"""By language code."""

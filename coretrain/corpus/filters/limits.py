"""Every limit by its name: which signal it holds, its canonical number, and where that is from.

A recipe's fields are made from `RULES`: `gopher.min_words` and so on. Where sources differ, the numbers here are those
of datatrove 0.10 (FineWeb's), and `VARIANTS` has the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from coretrain.corpus.filters.by_language import RuleOfLanguage
from coretrain.corpus.rules import Rule

Kind = Literal["count", "fraction", "number"]
_GOPHER, _FINEWEB = "Gopher (Rae et al., 2021), appendix A.1", "FineWeb (Penedo et al., 2024)"
_C4 = "C4 (Raffel et al., 2020)"
_REPETITION = "Gopher (Rae et al., 2021), table A1"


@dataclass(frozen=True)
class Limit:
    """A limit that a recipe may set: a document is kept where its signal is on the right side, equality included."""

    name: str
    """`SET.FIELD`, as a user types it."""
    signal: str
    side: Literal["least", "most"]
    default: float | None
    """None where the source has no such rule, so that it is off."""
    kind: Kind
    """A whole number from 0, a fraction from 0 to 1, or any number from 0."""
    what: str
    """What the signal counts, in words."""
    source: str
    language: str = ""
    """The code of the only language that it holds for; "" is all."""

    @property
    def meaning(self) -> str:
        """One line for a field's description."""
        return f"The {self.side} that a document may have, {self.what}."

    def rule(self, value: float | None = None) -> Rule:
        """The rule with this value, or with the default where none is given. Raises ValueError where neither is."""
        limit = self.default if value is None else value
        if limit is None:
            raise ValueError(f"{self.name} has no default")
        than = "more" if self.side == "most" else "fewer" if self.kind == "count" else "less"
        words = f"{self.what}: {than} than {limit:g}"
        least, most = (limit, None) if self.side == "least" else (None, limit)
        if self.language:
            return RuleOfLanguage(self.name, self.signal, words, least, most, self.source, self.language)
        return Rule(self.name, self.signal, words, least, most, self.source)


def _count(name: str, signal: str, default: float | None, what: str, source: str) -> Limit:
    return Limit(name, signal, _side(name), default, "count", what, source)


def _part(name: str, signal: str, default: float | None, what: str, source: str) -> Limit:
    return Limit(name, signal, _side(name), default, "fraction", what, source)


def _number(name: str, signal: str, default: float | None, what: str, source: str) -> Limit:
    return Limit(name, signal, _side(name), default, "number", what, source)


def _side(name: str) -> Literal["least", "most"]:
    return "least" if name.split(".")[1].startswith("min_") else "most"


def _repetition() -> list[Limit]:
    name, out = "gopher_repetition", []
    out.append(_count(f"{name}.min_characters", f"{name}.characters", 1, "characters", "an empty text has no lines"))
    for what in ("paragraph", "line"):
        out.append(
            _part(
                f"{name}.max_duplicate_{what}s",
                f"{name}.duplicate_{what}s",
                0.3,
                f"fraction of repeated {what}s",
                _REPETITION,
            )
        )
        out.append(
            _part(
                f"{name}.max_duplicate_{what}_characters",
                f"{name}.duplicate_{what}_characters",
                0.2,
                f"fraction of characters in repeated {what}s",
                _REPETITION,
            )
        )
    return out + _grams(
        name, "words", {2: 0.2, 3: 0.18, 4: 0.16}, {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}, _REPETITION
    )


def _grams(name: str, unit: str, top: dict[int, float], repeated: dict[int, float], source: str) -> list[Limit]:
    return [
        Limit(
            f"{name}.max_top_{n}_gram",
            f"{name}.top_{n}_gram",
            "most",
            limit,
            "number",
            f"fraction of characters in the most frequent {n} {unit}",
            source,
        )
        for n, limit in top.items()
    ] + [
        _part(
            f"{name}.max_duplicate_{n}_gram",
            f"{name}.duplicate_{n}_gram",
            limit,
            f"fraction of characters in repeated {n} {unit}",
            source,
        )
        for n, limit in repeated.items()
    ]


_UNSPACED = "the loosest of FineWeb-2's for Mandarin, Japanese and Thai, two characters for each of their words"

SETS: dict[str, tuple[Limit, ...]] = {
    "url": (
        _count("url.max_blocked_domains", "url.blocked_domains", 0, "blocked domains in its address", _FINEWEB),
        _count("url.max_blocked_addresses", "url.blocked_addresses", 0, "blocked addresses", _FINEWEB),
        _count("url.max_hard_words", "url.hard_words", 0, "forbidden words in its address", _FINEWEB),
        _count("url.max_soft_words", "url.soft_words", 1, "doubtful words in its address", _FINEWEB),
        _count("url.max_parts", "url.parts", 0, "forbidden parts of words in its address", _FINEWEB),
    ),
    "language": (_part("language.min_score", "language.score", 0.65, "probability of its language", _FINEWEB),),
    "gopher_repetition": tuple(_repetition()),
    "gopher": (
        _count("gopher.min_words", "gopher.words", 50, "words", _GOPHER),
        _count("gopher.max_words", "gopher.words", 100_000, "words", _GOPHER),
        _number("gopher.min_mean_word_length", "gopher.mean_word_length", 3, "characters a word", _GOPHER),
        _number("gopher.max_mean_word_length", "gopher.mean_word_length", 10, "characters a word", _GOPHER),
        _number("gopher.max_hash_ratio", "gopher.hash_ratio", 0.1, "signs # a word", _GOPHER),
        _number("gopher.max_ellipsis_ratio", "gopher.ellipsis_ratio", 0.1, "ellipses a word", _GOPHER),
        _part("gopher.max_bullet_lines", "gopher.bullet_lines", 0.9, "fraction of lines with a bullet", _GOPHER),
        _part(
            "gopher.max_ellipsis_lines",
            "gopher.ellipsis_lines",
            0.3,
            "fraction of lines that end in an ellipsis",
            _GOPHER,
        ),
        _part("gopher.min_alpha_words", "gopher.alpha_words", 0.8, "fraction of words with a letter", _GOPHER),
        _count("gopher.min_stop_words", "gopher.stop_words", 2, "different stop words", _GOPHER),
    ),
    "unspaced": (
        _count("unspaced.min_letters", "unspaced.letters", 100, "letters", "Gopher's 50 words"),
        _count("unspaced.max_letters", "unspaced.letters", 200_000, "letters", "Gopher's 100,000 words"),
        _part(
            "unspaced.min_letter_fraction",
            "unspaced.letter_fraction",
            0.7,
            "fraction of letters among characters",
            "chosen here: most texts have 0.85 and more",
        ),
        *_grams(
            "unspaced",
            "characters",
            {4: 0.256, 6: 0.201, 8: 0.171},
            {10: 0.307, 12: 0.283, 14: 0.264, 16: 0.248, 18: 0.234, 20: 0.223},
            _UNSPACED,
        ),
    ),
    "c4": (
        _count("c4.max_lorem_ipsum", "c4.lorem_ipsum", 0, "lines with lorem ipsum", _C4),
        _count("c4.max_curly", "c4.curly", 0, "lines with a curly bracket", _C4),
        _count("c4.min_sentences", "c4.sentences", 5, "sentences left", _C4),
    ),
    "mc4": (_count("mc4.min_long_lines", "page.long_lines", 3, "lines of 200 characters", "mC4 (Xue et al., 2021)"),),
    "fineweb": (
        _count("fineweb.min_lines", "fineweb.lines", 1, "lines that aren't blank", "datatrove 0.10"),
        _part(
            "fineweb.min_punctuated_lines",
            "fineweb.punctuated_lines",
            0.12,
            "fraction of lines that end as sentences do",
            _FINEWEB,
        ),
        _part("fineweb.max_short_lines", "fineweb.short_lines", 0.67, "fraction of short lines", _FINEWEB),
        _part(
            "fineweb.max_duplicate_line_characters",
            "fineweb.duplicate_line_characters",
            0.01,
            "fraction of characters in repeated lines",
            "datatrove 0.10; FineWeb's text says 0.1",
        ),
        _number("fineweb.max_newlines_per_word", "fineweb.newlines_per_word", 0.3, "line ends a word", _FINEWEB),
    ),
    "refinedweb": (
        _part(
            "refinedweb.max_removed_words",
            "refinedweb.removed_words",
            0.05,
            "fraction of words in lines that were dropped",
            "RefinedWeb (Penedo et al., 2023), G.2",
        ),
    ),
    "ccnet": (_count("ccnet.min_characters", "page.characters", 300, "characters", "CCNet (Wenzek et al., 2020)"),),
    "page": (
        _count("page.min_characters", "page.characters", None, "characters", "no source has it on"),
        _count("page.max_characters", "page.characters", None, "characters", "DCLM's C4 has 190,000"),
        _part("page.max_digits", "page.digits", None, "fraction of digits", "no source has it on"),
        _part("page.max_uppercase", "page.uppercase", None, "fraction of capitals", "no source has it on"),
        _part(
            "page.max_special_characters",
            "page.special_characters",
            None,
            "fraction of special characters",
            "Data-Juicer has 0.25",
        ),
        _part(
            "page.min_unique_words",
            "page.unique_words",
            None,
            "fraction of different words",
            "no source has it on",
        ),
    ),
    "adult": (
        _count("adult.max_words", "adult.words", 0, "words of the list", _C4),
        _part(
            "adult.max_fraction",
            "adult.fraction",
            None,
            "fraction of words of the list",
            "Data-Juicer has 0.045",
        ),
    ),
    "violence": (
        _count("violence.max_words", "violence.words", None, "words of the list", "no source has it on"),
        _part(
            "violence.max_fraction",
            "violence.fraction",
            0.02,
            "fraction of words of the list",
            "chosen here: a report of a crime has less",
        ),
    ),
    "perplexity": (
        _number(
            "perplexity.max_value",
            "perplexity.value",
            None,
            "perplexity",
            "a percentile of your own: CCNet takes the 30th and the 60th; Data-Juicer has 1,500",
        ),
    ),
    "quality": (
        _part(
            "quality.min_score",
            "quality.score",
            None,
            "probability of being like the good text",
            "a percentile of your own: DCLM keeps a tenth, which was 0.018 there",
        ),
    ),
}
"""By the name of a set, in the order in which the first that a document breaks is said."""

RULES: dict[str, Limit] = {limit.name: limit for limits in SETS.values() for limit in limits}
"""Each by its name."""

VARIANTS: dict[str, dict[str, float | None]] = {
    "c4_tfds": {"c4.min_sentences": 3},
    "fineweb_paper": {"fineweb.max_duplicate_line_characters": 0.1},
    "fineweb2": {
        "fineweb.max_duplicate_line_characters": 0.1,
        "fineweb.max_short_lines": None,
        "gopher_repetition.max_duplicate_paragraphs": None,
        "gopher_repetition.max_duplicate_paragraph_characters": None,
    },
}
"""Numbers of other sources, None where a rule is off. `c4_tfds` is TensorFlow Datasets' code and DCLM's, which also
has the step's `min_words_per_line` at 5; `fineweb2` goes with the limits of `coretrain.corpus.filters.fineweb2`."""

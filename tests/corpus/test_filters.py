"""Limits: their canonical numbers, their boundaries, their order, and languages."""

from __future__ import annotations

import numpy as np
import pytest

from coretrain.corpus.document import Batch, Document
from coretrain.corpus.filters.by_language import keep_languages, number_of
from coretrain.corpus.filters.fineweb2 import FINEWEB2
from coretrain.corpus.filters.limits import RULES, SETS, VARIANTS
from coretrain.corpus.rules import Rule, first_broken
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.fineweb import FineWeb
from coretrain.corpus.signals.gopher import Gopher
from coretrain.corpus.signals.language import Language
from coretrain.corpus.signals.page import Page
from coretrain.corpus.signals.refinedweb import RefinedWeb
from coretrain.corpus.signals.repetition import GopherRepetition
from coretrain.corpus.signals.unspaced import Unspaced
from coretrain.corpus.signals.url import Url
from coretrain.corpus.signals.word_lists import WordList
from tests.support.refusal import refused

CANONICAL = {
    "gopher.min_words": 50, "gopher.max_words": 100000, "gopher.min_mean_word_length": 3,
    "gopher.max_mean_word_length": 10, "gopher.max_hash_ratio": 0.1, "gopher.max_ellipsis_ratio": 0.1,
    "gopher.max_bullet_lines": 0.9, "gopher.max_ellipsis_lines": 0.3, "gopher.min_alpha_words": 0.8,
    "gopher.min_stop_words": 2, "gopher_repetition.max_duplicate_lines": 0.3,
    "gopher_repetition.max_duplicate_paragraphs": 0.3, "gopher_repetition.max_duplicate_line_characters": 0.2,
    "gopher_repetition.max_duplicate_paragraph_characters": 0.2, "gopher_repetition.max_top_2_gram": 0.2,
    "gopher_repetition.max_top_3_gram": 0.18, "gopher_repetition.max_top_4_gram": 0.16,
    "gopher_repetition.max_duplicate_5_gram": 0.15, "gopher_repetition.max_duplicate_6_gram": 0.14,
    "gopher_repetition.max_duplicate_7_gram": 0.13, "gopher_repetition.max_duplicate_8_gram": 0.12,
    "gopher_repetition.max_duplicate_9_gram": 0.11, "gopher_repetition.max_duplicate_10_gram": 0.1,
    "c4.min_sentences": 5, "c4.max_lorem_ipsum": 0, "c4.max_curly": 0, "fineweb.min_punctuated_lines": 0.12,
    "fineweb.max_short_lines": 0.67, "fineweb.max_duplicate_line_characters": 0.01,
    "fineweb.max_newlines_per_word": 0.3, "refinedweb.max_removed_words": 0.05, "ccnet.min_characters": 300,
    "mc4.min_long_lines": 3, "language.min_score": 0.65, "url.max_soft_words": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def computed():
    """The signals of every step over a few documents."""
    batch = Batch([Document("a", "Some words. " * 9, {"url": "http://a.de"}), Document("b", ""), Document("c", "今天")])
    tell = Language(identifier=lambda heads: [("en", 1.0) for _ in heads])
    steps = [tell, Url(), GopherRepetition(), Gopher(), Unspaced(), FineWeb(), Page(), WordList(), WordList("violence")]
    for step in [*steps, C4(), RefinedWeb()]:
        batch = step.run(batch)
    nothing = np.full(3, np.nan)  # of models that are trained first
    return {**batch.signals, "perplexity.value": nothing, "quality.score": nothing}


def test_the_numbers_are_those_of_the_sources():
    assert {name: RULES[name].default for name in CANONICAL} == CANONICAL


def test_a_limits_side_is_in_its_name_and_its_signal_is_its_steps(computed):
    for limit in (*RULES.values(), *(one for limits in FINEWEB2.values() for one in limits)):
        group, field = limit.name.split(".")
        assert field.startswith({"least": "min_", "most": "max_"}[limit.side]), limit
        assert limit.signal in computed, limit
        assert group in (*SETS, *(f"fineweb2_{code}" for code in FINEWEB2))
        assert limit.source
        if limit.kind == "fraction" and limit.default is not None:
            assert 0 <= limit.default <= 1
        assert f"{limit.default or 1:g}" in limit.rule(limit.default or 1).meaning


def test_signals_are_float64_one_a_document(computed):
    assert {(values.dtype.name, values.shape) for values in computed.values()} == {("float64", (3,))}


def test_equality_keeps_and_what_was_not_computed_keeps():
    signals = {"gopher.words": np.array([49, 50, 100_000, 100_001, np.nan])}
    assert RULES["gopher.min_words"].rule().keeps(signals).tolist() == [False, True, True, True, True]
    assert RULES["gopher.max_words"].rule().keeps(signals).tolist() == [True, True, True, False, True]
    assert RULES["gopher.min_words"].rule(30).keeps({"gopher.words": np.array([30.0, 29])}).tolist() == [True, False]


def test_a_limit_that_is_off_has_no_rule_without_a_value():
    assert RULES["page.max_digits"].rule(0.5).most == 0.5
    with pytest.raises(ValueError, match="no default"):
        RULES["page.max_digits"].rule()


def test_the_first_rule_that_a_document_breaks_is_named():
    rules = [limit.rule() for limit in SETS["gopher"]]
    count = 3
    signals = {limit.signal: np.full(count, np.nan) for limit in SETS["gopher"]}
    signals["gopher.words"] = np.array([10.0, 60, 60])
    signals["gopher.mean_word_length"] = np.array([2.0, 2, 5])
    names = [rules[at].name if at >= 0 else "" for at in first_broken(rules, signals, count)]
    assert names == ["gopher.min_words", "gopher.min_mean_word_length", ""]


def test_the_order_of_gophers_rules_is_datatroves():
    assert [limit.name.split(".")[1] for limit in SETS["gopher_repetition"][:5]] == [
        "min_characters", "max_duplicate_paragraphs", "max_duplicate_paragraph_characters", "max_duplicate_lines",
        "max_duplicate_line_characters",
    ]  # fmt: skip
    assert [limit.name for limit in SETS["gopher"]][:3] == [
        "gopher.min_words", "gopher.max_words", "gopher.min_mean_word_length"
    ]  # fmt: skip


def test_variants_name_limits():
    assert {name for numbers in VARIANTS.values() for name in numbers} <= set(RULES)


def test_a_languages_rule_says_nothing_of_others():
    rule = next(limit for limit in FINEWEB2["fr"] if limit.name == "fineweb2_fr.max_newlines_per_word").rule()
    signals = {
        "fineweb.newlines_per_word": np.array([0.2, 0.2, 0.185, 0.2]),
        "language.number": np.array([number_of("fr"), number_of("de"), number_of("fr"), np.nan]),
    }
    assert rule.keeps(signals).tolist() == [False, True, True, True]


def test_languages_without_blanks_have_limits_on_characters():
    names = {limit.signal for limit in FINEWEB2["zh"]}
    assert {"unspaced.top_4_gram", "unspaced.duplicate_20_gram"} <= names
    assert not {name for name in names if name.startswith("gopher.")}
    assert {limit.signal for limit in FINEWEB2["de"]} >= {"gopher_repetition.top_2_gram", "gopher.alpha_words"}
    assert [limit.default for limit in FINEWEB2["zh"] if limit.signal.startswith("unspaced.top")] == [
        0.256,
        0.201,
        0.171,
    ]


def test_only_the_languages_asked_for_are_kept():
    numbers = {"language.number": np.array([number_of("en"), number_of("de"), -1, np.nan])}
    rule = keep_languages(("en", "fr"))
    assert isinstance(rule, Rule)
    assert rule.keeps(numbers).tolist() == [True, False, False, True]
    with refused("corpus/language-unknown", "eng"):
        keep_languages(("en", "eng"))

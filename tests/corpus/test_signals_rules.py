"""Gopher's, FineWeb's and RefinedWeb's numbers: by hand at the boundaries, and against plain Python on random texts."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import math

import numpy as np
import pytest

from coretrain.corpus.document import Batch, Document
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.fineweb import FineWeb
from coretrain.corpus.signals.gopher import Gopher
from coretrain.corpus.signals.language import Language
from coretrain.corpus.signals.page import Page
from coretrain.corpus.signals.refinedweb import RefinedWeb
from coretrain.corpus.signals.repetition import GopherRepetition
from coretrain.corpus.signals.unspaced import Unspaced
from coretrain.corpus.text.texts import Texts
from tests.support import plain_rules
from tests.support.plain_rules import random_texts
from tests.support.refusal import refused

RANDOM = [*random_texts(7, 150), "", "\n", " ", "a", "a a", "x\n\nx\n\nx", "\n\na\n"]
DATATROVE = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«»—…•"


def batch(*texts: str, language: str = "") -> Batch:
    return Batch([Document(str(at), text, {"language": language}) for at, text in enumerate(texts)])


def signals(step, *texts: str, language: str = "") -> dict[str, list[float]]:
    found = step.run(batch(*texts, language=language)).signals
    return {key.removeprefix(f"{step.name}."): values.tolist() for key, values in found.items()}


def one(step, text: str, language: str = "") -> dict[str, float]:
    return {key: values[0] for key, values in signals(step, text, language=language).items()}


def words_of(text: str) -> list[str]:
    spans = Texts([text]).words
    return [text[a:b] for a, b in zip(spans.starts, spans.ends, strict=True)]


def agree(found: dict[str, list[float]], expected: list[dict[str, float]]) -> None:
    for key, values in found.items():
        np.testing.assert_array_equal(values, [row[key] for row in expected], err_msg=key)
    assert set(found) == set(expected[0])


@pytest.mark.parametrize("counting", ["default", "datatrove"])
def test_gopher_repetition_on_random_texts(counting):
    expected = [plain_rules.repetition(text, words_of(text), counting == "datatrove") for text in RANDOM]
    agree(signals(GopherRepetition(counting=counting), *RANDOM), expected)


@pytest.mark.parametrize("counting", ["default", "datatrove"])
def test_gopher_quality_on_random_texts(counting):
    punctuation = DATATROVE.replace("•", "") if counting == "datatrove" else DATATROVE
    expected = [plain_rules.gopher(text, words_of(text), punctuation) for text in RANDOM]
    agree(signals(Gopher(counting=counting), *RANDOM, language="en"), expected)


def test_fineweb_on_random_texts():
    agree(signals(FineWeb(), *RANDOM), [plain_rules.fineweb(text, words_of(text)) for text in RANDOM])


def test_blocks_change_nothing(monkeypatch):
    steps = [GopherRepetition(), Gopher(), FineWeb(), Page(), Unspaced(), GopherRepetition(counting="datatrove")]
    few = RANDOM[100:]
    whole = [signals(step, *few) for step in steps]
    for most in (1, 500):
        monkeypatch.setattr("coretrain.corpus.text.texts.BLOCK", most)
        for step, expected in zip(steps, whole, strict=True):
            for key, values in signals(step, *few).items():
                np.testing.assert_array_equal(values, expected[key])


def test_gopher_by_hand():
    text = "The cat, and the dog...\n- 42 # of it…\n• x"
    found = one(Gopher(), text, language="en")
    # The cat , and the dog ... - 42 # of it … • x
    assert found["words"] == 9
    assert found["mean_word_length"] == (3 + 3 + 3 + 3 + 3 + 2 + 2 + 2 + 1) / 9
    assert found["hash_ratio"] == 1 / 15
    assert found["ellipsis_ratio"] == 2 / 15
    assert found["bullet_lines"] == 2 / 3
    assert found["ellipsis_lines"] == 2 / 3
    assert found["alpha_words"] == 8 / 15
    assert found["stop_words"] == 3  # "The" is none


def test_repetition_by_hand():
    found = one(GopherRepetition(), "a b\na b\nc d e\n\na b\n\n\na b")
    length = 24
    assert found["characters"] == length
    assert found["duplicate_lines"] == 3 / 5
    assert found["duplicate_line_characters"] == 9 / length
    assert found["duplicate_paragraphs"] == 1 / 3
    assert found["duplicate_paragraph_characters"] == 3 / length
    assert found["top_2_gram"] == 4 * 3 / length
    assert found["top_3_gram"] == 2 * 5 / length  # "a b a" and "b a b", across lines


def test_the_longest_of_equally_frequent_n_grams_counts_and_datatroves_is_the_first():
    text = "a b a b longer word longer word"
    assert one(GopherRepetition(), text)["top_2_gram"] == 2 * 11 / len(text)
    assert one(GopherRepetition(counting="datatrove"), text)["top_2_gram"] == 2 * 3 / len(text)


def test_an_n_gram_that_occurs_once_is_no_repetition_but_datatrove_counts_it():
    assert one(GopherRepetition(), "one two")["top_2_gram"] == 0
    assert one(GopherRepetition(counting="datatrove"), "one two")["top_2_gram"] == 1
    assert one(GopherRepetition(counting="datatrove"), "one")["top_2_gram"] == 0


def test_repeated_words_count_once_and_datatrove_passes_over_what_it_hit():
    text = "a b c d e a b c d e f g a b c d e f"  # a..f again, overlapping n-grams
    found = one(GopherRepetition(), text)
    assert found["duplicate_5_gram"] == (5 + 6) / len(text)
    assert found["duplicate_6_gram"] == 6 / len(text)
    greedy = one(GopherRepetition(counting="datatrove"), text)
    assert greedy["duplicate_5_gram"] == (5 + 5) / len(text)


def test_datatrove_runs_words_together():
    text = "ab c d e f a bc d e f"
    assert one(GopherRepetition(), text)["duplicate_5_gram"] == 0
    assert one(GopherRepetition(counting="datatrove"), text)["duplicate_5_gram"] == 6 / len(text)


def test_fineweb_by_hand():
    text = "A line that ends.\n\n" + "x" * 30 + "\n" + "y" * 31 + '."\n \nA line that ends.'
    found = one(FineWeb(), text)
    assert found["lines"] == 4
    assert found["punctuated_lines"] == 2 / 4  # a quote behind the point is no end
    assert found["short_lines"] == 3 / 4
    assert found["duplicate_line_characters"] == 17 / (17 + 30 + 33 + 1 + 17)
    assert found["newlines_per_word"] == 5 / (5 + 1 + 3 + 5)


def test_page_by_hand():
    found = one(Page(), "Ab 12!\n\n" + "c" * 200)
    assert found == {
        "characters": 208, "lines": 3, "long_lines": 1, "mean_line": 103, "digits": 2 / 208, "uppercase": 1 / 202,
        "special_characters": 1 / 208, "unique_words": 1,
    }  # fmt: skip
    assert one(Page(), "a b a B")["unique_words"] == 3 / 4
    assert one(Page(), "c" * 199)["long_lines"] == 0


def test_an_empty_text_has_counts_and_no_fractions():
    found = one(Gopher(), "", language="en")
    assert found["words"] == found["stop_words"] == 0
    assert math.isnan(found["mean_word_length"])
    assert math.isnan(found["bullet_lines"])
    assert one(GopherRepetition(), "")["characters"] == 0
    assert one(FineWeb(), "")["lines"] == 0


CHINESE = "今天天气很好。我们去公园散步，看见很多花。"


def test_rules_for_words_say_nothing_of_scripts_without_blanks():
    words = ("words", "mean_word_length", "hash_ratio", "ellipsis_ratio", "alpha_words", "stop_words")
    found = one(Gopher(), CHINESE)
    assert [key for key, value in found.items() if math.isnan(value)] == list(words)
    found = one(GopherRepetition(), CHINESE)
    assert all(math.isnan(value) == ("gram" in key) for key, value in found.items())
    found = one(FineWeb(), CHINESE)
    assert {key for key, value in found.items() if math.isnan(value)} == {"short_lines", "newlines_per_word"}
    assert math.isnan(one(Page(), CHINESE)["unique_words"])


def test_datatroves_counting_knows_no_scripts():
    assert one(Gopher(counting="datatrove"), CHINESE)["words"] == 18


def test_scripts_without_blanks_have_rules_of_their_own():
    found = one(Unspaced(), CHINESE)
    assert found["letters"] == 18
    assert found["letter_fraction"] == 18 / 21
    assert found["top_4_gram"] == 0
    twice = one(Unspaced(), "春眠不觉晓处处闻啼鸟" * 2)
    assert twice["duplicate_10_gram"] == 10 / 20
    assert twice["duplicate_12_gram"] == 0
    assert twice["top_4_gram"] == 2 * 7 / 20  # 4 characters and what would be 3 blanks
    assert all(math.isnan(value) for value in one(Unspaced(), "Plain English.").values())
    both = signals(Unspaced(), "English here", CHINESE)
    assert [math.isnan(value) for value in both["letters"]] == [True, False]


@pytest.mark.parametrize(
    ("text", "language", "count"),
    [
        ("the man and the sea", "en", 2),
        ("der Mann und das Meer", "de", 3),
        ("der Mann und das Meer", "en", 0),
        ("der Mann und das Meer", "", 0),  # Latin letters and no language: as English
        ("человек и море", "ru", 1),
        ("человек и море", "", math.nan),
        ("mies ja meri", "fi", math.nan),
        ("the the the", "en", 1),
        ("The of", "en", 1),
    ],
)
def test_stop_words_are_those_of_the_language(text, language, count):
    np.testing.assert_equal(one(Gopher(), text, language=language)["stop_words"], count)


@pytest.mark.parametrize(
    ("step", "text", "key", "value"),
    [
        (Gopher(), "word " * 50, "words", 50),
        (Gopher(), "- a\n" * 9 + "b", "bullet_lines", 0.9),
        (Gopher(), "a...\n" * 3 + "b\n" * 7, "ellipsis_lines", 0.3),
        (Gopher(), "# w w w w w w w w w", "hash_ratio", 0.1),
        (Gopher(), "1 a a a a", "alpha_words", 0.8),
        (FineWeb(), "x.\n" * 3 + "x y z\n" * 22, "punctuated_lines", 0.12),
    ],
)
def test_at_the_limits(step, text, key, value):
    assert one(step, text)[key] == value


@pytest.mark.parametrize(
    ("make", "code", "name"),
    [
        (lambda: Gopher(counting="datatrov"), "corpus/counting-unknown", "gopher.counting"),
        (lambda: C4(counting=""), "corpus/counting-unknown", "c4.counting"),
        (lambda: C4(min_words_per_line=-1), "corpus/option-range", "c4.min_words_per_line"),
        (lambda: C4(max_word_characters=0), "corpus/option-range", "c4.max_word_characters"),
        (lambda: RefinedWeb(max_uppercase=1.5), "corpus/option-range", "refinedweb.max_uppercase"),
        (lambda: RefinedWeb(max_uppercase=math.nan), "corpus/option-range", "refinedweb.max_uppercase"),
        (lambda: RefinedWeb(max_phrase_words=-1), "corpus/option-range", "refinedweb.max_phrase_words"),
        (lambda: Language(characters=0), "corpus/option-range", "language.characters"),
        (lambda: FineWeb(short=-1), "corpus/option-range", "fineweb.short"),
        (lambda: Page(long=0), "corpus/option-range", "page.long"),
        (lambda: Page(counting="x"), "corpus/counting-unknown", "page.counting"),
    ],
)
def test_options_that_cannot_be_are_refused(make, code, name):
    with refused(code, name):
        make()

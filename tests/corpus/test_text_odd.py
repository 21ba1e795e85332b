"""Any text at all: no step fails on it, and each document's numbers are its own."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coretrain.corpus.document import Batch, Document
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.fineweb import FineWeb
from coretrain.corpus.signals.gopher import Gopher
from coretrain.corpus.signals.language import Language
from coretrain.corpus.signals.page import Page
from coretrain.corpus.signals.pii import Pii
from coretrain.corpus.signals.refinedweb import RefinedWeb
from coretrain.corpus.signals.repetition import GopherRepetition
from coretrain.corpus.signals.unspaced import Unspaced
from coretrain.corpus.signals.url import Url
from coretrain.corpus.signals.word_lists import WordList
from coretrain.corpus.text.texts import Texts
from tests.support import plain_rules

STEPS = [
    Gopher(), Gopher(counting="datatrove"), GopherRepetition(), GopherRepetition(counting="datatrove"), FineWeb(),
    Page(), Unspaced(), WordList(), Url(), C4(), C4(counting="datatrove"), RefinedWeb(), Pii(),
]  # fmt: skip
SIGNS = st.one_of(
    st.sampled_from("ab  \n\n.…-•#'’,1你カกิ\u0301\u200b\r\x85\u2028\ud800😀!@:["),
    st.characters(exclude_categories=()),
)
TEXTS = st.lists(st.text(SIGNS, max_size=40), max_size=5)
STEADY = settings(
    max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def batch(texts: list[str]) -> Batch:
    return Batch([Document(str(at), text, {"url": text}) for at, text in enumerate(texts)])


@STEADY
@given(TEXTS)
def test_a_documents_numbers_are_its_own(texts):
    for step in STEPS:
        together = step.run(batch(texts))
        for at, text in enumerate(texts):
            alone = step.run(batch([text]))
            assert alone.texts[0] == together.texts[at]
            for key, values in alone.signals.items():
                assert values.dtype == np.float64
                np.testing.assert_array_equal(values, together.signals[key][at : at + 1], err_msg=key)


@STEADY
@given(TEXTS)
def test_repetition_of_any_text_is_that_of_plain_python(texts):
    found = Texts(texts)
    whole = "".join(texts)
    words = [whole[a:b] for a, b in zip(found.words.starts, found.words.ends, strict=True)]
    parts = [words[a:b] for a, b in zip(found.words.first[:-1], found.words.first[1:], strict=True)]
    for counting in ("default", "datatrove"):
        signals = GopherRepetition(counting=counting).run(batch(texts)).signals
        for at, text in enumerate(texts):
            expected = plain_rules.repetition(text, parts[at], counting == "datatrove")
            for key, value in expected.items():
                got = signals[f"gopher_repetition.{key}"][at]
                foreign = counting == "default" and "gram" in key and found.unspaced[at]
                np.testing.assert_equal(got, np.nan if foreign else value, err_msg=key)


def test_steps_go_to_other_processes():
    texts = ["The same words. The same words.", "porn 你好"]
    for step in [*STEPS, Language()]:
        again = pickle.loads(pickle.dumps(step))
        assert again == step
        if step.name != "language":
            step.run(batch(texts))  # what it keeps by itself goes along, or is made anew
            again = pickle.loads(pickle.dumps(step))
            for key, values in step.run(batch(texts)).signals.items():
                np.testing.assert_array_equal(again.run(batch(texts)).signals[key], values)


def test_texts_with_odd_characters_have_languages():
    pytest.importorskip("fasttext")
    found = Language().run(batch(["plain text here", "a\0b\ud800 text", "\x85\u2028", "\x00", "é" * 3000]))
    assert len(found.signals["language.score"]) == 5

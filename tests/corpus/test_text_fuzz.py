"""Odd lists and models: taken, or refused in a sentence; and odd texts, which every step takes."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from coretrain.corpus.classify import step as classify_step
from coretrain.corpus.classify.model import train as train_classifier
from coretrain.corpus.classify.step import Quality
from coretrain.corpus.document import Batch, Document
from coretrain.corpus.perplexity import step as perplexity_step
from coretrain.corpus.perplexity.step import Perplexity
from coretrain.corpus.perplexity.train import train
from coretrain.corpus.signals import url, word_lists
from coretrain.corpus.signals.url import Url
from coretrain.corpus.signals.word_lists import WordList
from tests.support.fuzzing import ends_well, fuzzed, mutated_bytes, odd, replaced

BATCH = Batch([Document("a", "The bad words of a text. They are bad.", {"url": "http://www.bad.com/x"})])
LIST = b"# words\nbad\nvery bad words\n\nbad.com\nhttp://www.bad.com/x\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A valid list, plain and packed, and two models."""
    place = tmp_path_factory.mktemp("lists")
    (place / "list.txt").write_bytes(LIST)
    (place / "list.txt.gz").write_bytes(gzip.compress(LIST, mtime=0))
    train(["the bad words of a text .", "they are bad"], 3).save(place / "perplexity.npz")
    train_classifier(["a good text"], ["a bad one"], bits=8).save(place / "quality.npz")
    return place


@fuzzed(2)
def test_lists(folder, random):
    path = folder / random.choice(["list.txt", "list.txt.gz"])
    fields = {random.choice(["domains", "addresses", "hard_words", "soft_words", "parts"]): str(path)}
    with replaced(path, mutated_bytes(random, path.read_bytes())):
        for keeper in (url._words, url._hashes, word_lists._entries):
            keeper.cache_clear()
        ends_well("list of addresses", lambda: Url(**fields).run(BATCH))
        ends_well("list of words", lambda: WordList("mine", str(path)).run(BATCH))


@fuzzed(2)
def test_models(folder, random):
    path = folder / random.choice(["perplexity.npz", "quality.npz"])
    step = Perplexity if path.name.startswith("perplexity") else Quality
    with replaced(path, mutated_bytes(random, path.read_bytes())):
        perplexity_step._scorer.cache_clear()
        classify_step._classifier.cache_clear()
        ends_well("model of texts", lambda: step(str(path)).run(BATCH))


@fuzzed(1)
def test_addresses(random):
    value = odd(random)
    document = Document("a", "x", {"url": value if isinstance(value, str | int | float) else str(value)})
    ends_well("address", lambda: Url().run(Batch([document])))

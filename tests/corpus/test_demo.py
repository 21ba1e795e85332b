"""The demo is the same in every call, and what its answers say of its files is so."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import defaultdict

import pytest

from coretrain.corpus.demo import answers as answers_module
from coretrain.corpus.demo.make import make_demo
from coretrain.corpus.demo.plants import jaccard
from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.extract.extract import Extractor
from tests.support.crawls import kinds, read_all
from tests.support.refusal import refused

EACH = 40
"""Pages of Python's own texts: fewer than a user gets, and all that is planted."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Its folder and its answers."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, make_demo(folder, EACH)


@pytest.fixture(scope="module")
def crawl(demo):
    """All that is in its WARC files."""
    return read_all(f"{demo[0]}/*.warc.gz")


@pytest.fixture(scope="module")
def documents(crawl):
    """Its pages' texts, by id."""
    one = Extractor()
    return {page.id: one.document(page) for page in crawl if isinstance(page, Page)}


def test_it_is_the_same_in_every_call(demo, tmp_path):
    folder, answers = demo
    assert make_demo(tmp_path, EACH) == answers
    assert answers_module.load(folder) == answers
    first, second = ({path.name: digest(path) for path in place.iterdir()} for place in (folder, tmp_path))
    assert first == second
    assert set(first) == {*answers.warc, *answers.wet, *answers.wat, answers.index, "answers.json"}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_plant_is_there_once(demo, crawl):
    _, answers = demo
    ids = [one.id for one in crawl if isinstance(one, Page)]
    assert len(ids) == len(set(ids))
    assert answers.pages == len(crawl)
    assert len({plant.id for plant in answers.plants}) == len(answers.plants) > 250
    assert {plant.outcome for plant in answers.plants} == set(answers_module.OUTCOMES)
    troubled = {plant.id for plant in answers.with_outcome("trouble")}
    assert {plant.id for plant in answers.plants} - set(ids) == troubled
    assert len(ids) == EACH + len(answers.plants) - len(troubled)


def test_the_troubles_are_those_that_were_planted(demo, crawl):
    _, answers = demo
    planted = defaultdict(int)
    for plant in answers.with_outcome("trouble"):
        planted[plant.facts["trouble"]] += 1
    assert {kind: count for kind, count in kinds(crawl).items() if kind != "Page"} == planted
    urls = {one.words.partition(": ")[0]: one.kind for one in crawl if isinstance(one, Trouble)}
    known = {plant.url: plant.facts["trouble"] for plant in answers.with_outcome("trouble")}
    assert {url: kind for url, kind in urls.items() if url in known}.items() <= known.items()
    assert len(urls.keys() & known.keys()) >= len(known) - 4  # a damaged record doesn't say its URL


def test_likenesses_are_as_strong_as_is_said(demo, documents):
    """Counted again on what the extractor gives, by pairs of words' 5-grams."""
    _, answers = demo
    groups = defaultdict(list)
    for plant in answers.of("near-duplicate"):
        groups[plant.group].append(plant)
    assert len(groups) == 64
    for a, b in groups.values():
        first, other = sorted((a, b), key=lambda plant: plant.url)
        assert first.facts["jaccard"] == 1.0
        found = by_hand(documents[first.id].text, documents[other.id].text)
        assert found == pytest.approx(other.facts["jaccard"], abs=1e-6)
        aimed = float(other.group.split("-")[1])
        assert abs(found - aimed) < 0.04
        assert other.outcome == ("duplicate" if found >= 0.9 else "either" if found > 0.5 else "distinct")
    assert jaccard("a b c d e f", "a b c d e g") == pytest.approx(1 / 3)


def by_hand(one, other):
    """The Jaccard of two texts, without sets of tuples."""
    grams = [
        {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
        for words in (re.findall(r"\w+", text.lower()) for text in (one, other))
    ]
    return len(grams[0] & grams[1]) / len(grams[0] | grams[1])


def test_copies_are_copies_and_nothing_else_is(demo, documents):
    _, answers = demo
    groups = defaultdict(set)
    for plant in answers.of("exact-duplicate"):
        groups[plant.group].add(documents[plant.id].text)
    assert len(groups) == 6
    assert all(len(texts) == 1 for texts in groups.values())
    assert len(set().union(*groups.values())) == 6
    firsts = [plant for plant in answers.of("near-duplicate") if plant.url.endswith("-a")]
    for a, b in itertools.combinations(firsts[::6], 2):
        assert by_hand(documents[a.id].text, documents[b.id].text) < 0.25


def test_texts_hold_what_is_said_of_them(demo, documents):
    _, answers = demo
    for plant in (one for one in answers.plants if one.id in documents):
        for said in (plant.facts.get("contains", ""), *plant.facts.get("emails", []), *plant.facts.get("public", [])):
            assert " ".join(said.split()) in " ".join(documents[plant.id].text.split()), plant.url
    for plant in answers.of("charset"):
        assert "\ufffd" not in documents[plant.id].text
    for plant in answers.of("boilerplate-only"):
        assert len(documents[plant.id].text.split()) < 8


def test_text_and_links_of_the_same_pages(demo, crawl):
    folder, answers = demo
    texts = read_all(f"{folder}/*.wet.gz")
    assert kinds(texts) == {"Document": len(texts)}
    pages = {one.metadata["url"]: one for one in crawl if isinstance(one, Page)}
    assert len(pages.keys() - {one.metadata["url"] for one in texts}) <= 2
    assert all(isinstance(one, Document) and one.text for one in texts)
    links = read_all(f"{folder}/*.wat.gz")
    assert [one.metadata["url"] for one in links] == [one.metadata["url"] for one in texts]
    assert all(one.metadata["links"] == 7 and one.metadata["title"] for one in links)
    assert len(answers.wet) == len(answers.wat) == len(answers.warc)


def test_the_index_names_every_record(demo, crawl):
    folder, answers = demo
    found = read_all(f"{folder}/{answers.index}")

    assert kinds(found) == kinds(crawl)
    assert {one.id: one for one in found if isinstance(one, Page)} == {
        one.id: one for one in crawl if isinstance(one, Page)
    }


def test_python_speaks_of_itself(documents, demo):
    """Most of it is real text that this Python brings."""
    own = [one for one in documents.values() if "docs.example" in str(one.metadata["url"])]
    assert len(own) == EACH
    assert min(len(one.text.split()) for one in own) > 100
    assert not re.search(r"/home/|/usr/lib|/tmp/venv", "\n".join(one.text for one in own[:5]))


def test_answers_that_are_missing(tmp_path):
    with refused("base/json-file-missing", "answers.json"):
        answers_module.load(tmp_path)

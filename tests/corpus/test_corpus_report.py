"""report.html and card.md: self-contained, every word of a page escaped, and the same for the same corpus."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from coretrain.corpus.engine.run import Here
from coretrain.corpus.pipeline.corpus import make_corpus, outcome
from coretrain.corpus.pipeline.seal import WORK
from coretrain.corpus.pipeline.select import edges
from coretrain.corpus.report.card import card
from coretrain.corpus.report.charts import histogram, position
from coretrain.corpus.report.funnel import as_text, funnel
from coretrain.corpus.report.page import size, write_report
from coretrain.corpus.rules import Rule
from tests.support.recipes import small_recipe, text, write_rows

EVIL = '<script>alert("x")</script> </pre><img src=x onerror=y> {{ 7*7 }} | # <b>'


class Reader(HTMLParser):
    """Which elements stand in a page, where they lead to, and that they close in order."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.leads, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.leads += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = [{"text": f"{EVIL}\n{text(n)}" if n % 3 else f"{EVIL} short", "url": f"https://x/<{n}>"} for n in range(12)]
    paths = [str(write_rows(folder / "in/a.jsonl", rows))]
    recipe = small_recipe(paths, about=EVIL, name="n <i>", licence=EVIL)
    make_corpus(recipe, folder / "out", Here, say=lambda line: None)
    _, told = outcome(folder / "out")
    write_report(folder / "out", folder / "out" / WORK, recipe, told)
    return folder / "out", recipe, told


def read(out):
    reader = Reader()
    page = (out / "report.html").read_text(encoding="utf-8")
    reader.feed(page)
    assert reader.open == []
    return reader, page


def test_the_page_stands_alone_and_runs_nothing(made):
    reader, page = read(made[0])
    assert {"script", "img", "link", "iframe", "i-x"} & set(reader.tags) == set()
    assert reader.leads == []
    assert "url(" not in page
    assert "@import" not in page


def test_words_of_pages_are_shown_as_they_are(made):
    reader, _ = read(made[0])
    words = "".join(reader.words)
    assert '<script>alert("x")</script> </pre><img src=x onerror=y> {{ 7*7 }}' in words
    assert "https://x/<3>" in words


def test_every_rule_has_a_picture_with_its_limit_and_examples(made):
    _, recipe, _ = made
    reader, page = read(made[0])
    words = " ".join(reader.words)
    for name in recipe.rules:
        for rule in recipe.active(name):
            assert f"{rule.name}: " in words
    assert words.count("gopher.min_words: drops 4") == 1
    assert "≥ 50" in words
    assert page.count("<figure>") == len({r.signal for name in recipe.rules for r in recipe.active(name)})


def test_the_card_says_what_is_known(made):
    _, recipe, told = made
    words = card(recipe, told, funnel(recipe, told))
    assert told["fingerprint"] in words
    assert "a.jsonl" in words
    assert "<script>" not in words
    assert "\n| gopher.min_words | words: fewer than 50 | 4 |" in words
    unsaid = recipe.model_copy(update={"licence": ""})
    assert "Not known." in card(unsaid, told, funnel(recipe, told))


def test_the_terminal_has_room_for_the_funnel(made):
    _, recipe, told = made
    assert max(map(len, as_text(recipe, told).splitlines())) <= 100


def test_bars_are_square_roots_and_the_line_stands_at_the_limit():
    rule = Rule("a.max", "a", "", most=0.5)
    borders = np.linspace(0, 1, 5)
    svg = histogram(borders, [100, 25, 0, 4], [100, 0, 0, 0], [rule], "a")
    heights = [float(one) for one in re.findall(r'class="gone"[^>]* height="([\d.]+)"', svg)]
    assert heights == [78.0, 39.0, 15.6]
    assert len(re.findall('class="kept"', svg)) == 1
    assert 'class="limit" x1="150.0"' in svg
    assert "0.25 to 0.5: 25 documents, 0 of them kept" in svg


def test_a_value_lies_among_bars_of_one_width():
    borders = np.array([0.0, 1.0, 10.0, 100.0])
    assert position(borders, 0.5) == pytest.approx(1 / 6)
    assert position(borders, 55) == pytest.approx(2.5 / 3)
    assert position(borders, 1e9) == 1.0


@pytest.mark.parametrize(("limit", "last"), [(0.1, 0.3), (0.8, 1.0), (3, 9), (50, 1000), (1, 10)])
def test_bins_reach_beyond_the_limit(limit, last):
    found = edges([Rule("x.y", "x", "", least=limit)], "x")
    assert found[-1] == pytest.approx(last)
    assert np.all(np.diff(found) > 0)


def test_sizes_in_words():
    assert [size(n) for n in (0, 999, 1000, 1_234_567, 5 * 10**9)] == ["0 B", "999 B", "1 kB", "1.23 MB", "5 GB"]

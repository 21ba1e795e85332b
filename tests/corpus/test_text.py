"""Texts as arrays: words, lines, paragraphs, hashes and repeats against plain Python, for texts of every kind."""
# Characters that look like others are meant here.
# ruff: noqa: RUF001

from __future__ import annotations

import re

import numpy as np
import pytest

from coretrain.corpus.text import classes
from coretrain.corpus.text.hashes import Prefixes, hashes_of
from coretrain.corpus.text.repeats import groups_of, later_copies, repeated_grams
from coretrain.corpus.text.sentences import count_sentences
from coretrain.corpus.text.spans import Spans
from coretrain.corpus.text.texts import Texts, blocks
from tests.support.plain_rules import random_texts

ODD = ["", "\n", "a", " \n\n a \n\n\nb\n", "x\r\ny\rz", "\x85a\u2028b\x1cc", "\n\n\n", "a\n\n", "  ", "😀é\u0301\n"]


def cut(texts: Texts, spans: Spans) -> list[list[str]]:
    whole = "".join(texts.strings)
    parts = [whole[a:b] for a, b in zip(spans.starts, spans.ends, strict=True)]
    return [parts[a:b] for a, b in zip(spans.first[:-1], spans.first[1:], strict=True)]


def words(*strings: str) -> list[list[str]]:
    texts = Texts(strings)
    return cut(texts, texts.words)


@pytest.mark.parametrize(
    ("view", "plain"),
    [
        ("lines", lambda text: text.split("\n")),
        ("split_lines", str.splitlines),
        ("line_runs", lambda text: re.split(r"\n+", text)),
        ("paragraphs", lambda text: re.split(r"\n{2,}", text.strip())),
        ("tokens_between_blanks", str.split),
    ],
)
def test_what_a_text_is_cut_into_is_what_python_cuts(view, plain):
    texts = Texts(ODD + random_texts(1, 80) + ODD)
    assert cut(texts, getattr(texts, view)) == [plain(one) for one in texts.strings]


def test_spans_lose_the_blanks_at_their_ends_as_strip_does():
    texts = Texts(ODD + random_texts(2, 40))
    assert cut(texts, texts.stripped(texts.lines)) == [[x.strip() for x in y.split("\n")] for y in texts.strings]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop!", ["Don't", "stop", "!"]),
        ("It’s 3.14, or 1,000.", ["It’s", "3.14", ",", "or", "1,000", "."]),
        ("well-known ... wow!!", ["well", "-", "known", "...", "wow", "!!"]),
        ("a.b 'x' 5. .5", ["a.b", "'", "x", "'", "5", ".", ".", "5"]),
        ("end.Next A.B os.path.join 5.X", ["end", ".", "Next", "A.B", "os.path.join", "5.X"]),
        ("d’Artagnan a@b.de x@ 1,a a,b", ["d’Artagnan", "a@b.de", "x", "@", "1", ",", "a", "a", ",", "b"]),
        ("snake_case x2", ["snake_case", "x2"]),
        ("Ünï e\u0301 x", ["Ünï", "e\u0301", "x"]),
        ("你好，世界abc", ["你", "好", "，", "世", "界", "abc"]),
        ("カー", ["カ", "ー"]),
        ("กี่ ไทย", ["กี่", "ไ", "ท", "ย"]),
        ("한국어 글", ["한국어", "글"]),
        ("?!?", ["?", "!", "?"]),
        ("\u0301x", ["\u0301x"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == [expected]


def test_a_word_ends_where_its_text_ends():
    assert words("ab", "cd", "", "3", ".", "14", "x", "'", "y") == [
        ["ab"], ["cd"], [], ["3"], ["."], ["14"], ["x"], ["'"], ["y"]
    ]  # fmt: skip
    assert words("..", "..") == [[".."], [".."]]
    assert words("a", "\u0301b") == [["a"], ["\u0301b"]]


def test_words_of_another_tool_take_the_place_of_ours():
    texts = Texts(["ab cd", "", "ef"], splitter=lambda strings: [[(0, 2), (3, 5)], [], [(1, 2)]])
    assert cut(texts, texts.words) == [["ab", "cd"], [], ["f"]]
    assert list(texts.word_hashes) == list(hashes_of(["ab", "cd", "f"]))


def test_a_text_alone_gives_what_it_gives_among_others():
    strings = ODD + random_texts(3, 30)
    together = Texts(strings)
    hashes = np.split(together.word_hashes, together.words.first[1:-1])
    for one, found, text in zip(cut(together, together.words), hashes, strings, strict=True):
        alone = Texts([text])
        assert cut(alone, alone.words) == [one]
        assert list(alone.word_hashes) == list(found)


def test_blocks_hold_every_text_once_and_no_more_characters_than_asked():
    strings = ["abc", "", "defgh", "i" * 50, "j", "k"]
    found = list(blocks(strings, most=8))
    assert [texts.strings for _, texts in found] == [["abc", "", "defgh"], ["i" * 50], ["j", "k"]]
    assert [strings[place] for place, _ in found] == [texts.strings for _, texts in found]
    assert list(blocks([])) == []


def test_a_block_is_kept_for_the_next_rule_and_no_longer():
    strings = ["one text", "another"]
    first = next(blocks(strings))[1]
    assert next(blocks(list(strings)))[1] is first
    assert next(blocks(strings, splitter=lambda texts: [[] for _ in texts]))[1] is not first
    assert next(blocks(["one text", "other"]))[1] is not first


def test_hashes_are_equal_for_equal_strings_wherever_they_stand_and_known():
    points = np.frombuffer("ab\0ab\0\0b".encode("utf-32-le"), np.uint32)
    starts, ends = np.array([0, 3, 2, 5, 0, 1, 0]), np.array([2, 5, 3, 6, 0, 2, 3])
    found = Prefixes(points).hashes(starts, ends)
    assert list(found) == list(hashes_of(["ab", "ab", "\0", "\0", "", "b", "ab\0"]))
    assert len(set(found.tolist())) == 5
    base, word = 0x9E3779B97F4A7C15, 2**64
    value = sum(_mixed(ord(one)) * pow(base, place, word) for place, one in enumerate("ab"))
    assert int(found[0]) == _mixed((value + 2 * 0xD6E8FEB86659FD93) % word)


def _mixed(value: int) -> int:
    word = 2**64
    value = (value + 0x9E3779B97F4A7C15) % word
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) % word
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) % word
    return value ^ value >> 31


def test_hashes_of_many_short_strings_differ():
    strings = [chr(97 + a) + chr(97 + b) + chr(97 + c) for a in range(26) for b in range(26) for c in range(26)]
    strings += [one[:2] for one in strings[::26]] + [one[::-1] + "!" for one in strings]
    assert len(np.unique(hashes_of(strings))) == len(set(strings))


def test_groups_of_equal_keys():
    groups = groups_of(np.array([5, 7, 5, 9, 7, 5], np.uint64))
    assert sorted(zip(groups.leaders.tolist(), groups.sizes.tolist(), strict=True)) == [(0, 3), (1, 2)]
    assert list(groups.later(6)) == [False, False, True, False, True, True]
    assert not len(groups_of(np.array([], np.uint64)).sizes)


def test_what_repeats_in_another_document_is_no_repeat():
    texts = Texts(["a b c d", "a b c d", "a b a b"])
    assert texts.words.sum(later_copies(texts.words, texts.word_hashes)).tolist() == [0, 0, 2]
    grams = dict(repeated_grams(texts.words, texts.word_hashes, 3))
    assert grams[2].members.tolist() == [8, 10]
    assert grams[2].sizes.tolist() == [2]
    assert grams[3].members.tolist() == []


def test_every_repeated_n_gram_is_found():
    texts = Texts(random_texts(4, 60))
    plain = cut(texts, texts.words)
    for n, groups in repeated_grams(texts.words, texts.word_hashes, 10):
        expected = set()
        for document, one in enumerate(plain):
            grams = [tuple(one[at : at + n]) for at in range(len(one) - n + 1)]
            expected |= {texts.words.first[document] + at for at, gram in enumerate(grams) if grams.count(gram) > 1}
        assert set(groups.members.tolist()) == expected


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("", 0),
        ("One.", 1),
        ("One. Two! Three?", 3),
        ("No end", 1),
        ("One. rest", 2),
        ("Version 3.14 is out.", 1),
        ('He said "Go." Then left.', 2),
        ("Wait... what?!", 2),
        ("(One.) Two.", 2),
        ("一。二！三", 3),
        ("...", 0),
        ("A. ... B.", 2),
        ("see example.com now", 1),
        ('"Quoted"', 1),
    ],
)
def test_sentences_are_counted(line, count):
    assert count_sentences(["Before.", line, "After. Wards"]).tolist() == [1, count, 2]


def test_classes_of_characters_are_pythons():
    flags = classes.flags_of_points()
    for point in [*range(0x500), 0x3042, 0x4E00, 0x0E01, 0x1F600, 0x10FFFF, 0xE0100]:
        one = chr(point)
        for bit, is_one in (
            (classes.LETTER, one.isalpha()), (classes.DIGIT, one.isdigit()), (classes.BLANK, one.isspace()),
            (classes.UPPER, one.isupper()), (classes.LINE_END, len(f"a{one}b".splitlines()) == 2),
        ):  # fmt: skip
            assert bool(flags[point] & bit) == is_one, (hex(point), bit)


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("你好世界", True),
        ("你好 hello", False),
        ("你好世界 ok", True),
        ("", False),
        ("ไทย", True),
        ("안녕", False),
        ("12", False),
    ],
)
def test_texts_in_scripts_without_blanks_are_known(text, unspaced):
    assert Texts([text]).unspaced.tolist() == [unspaced]

"""Substrings that occur twice, against plain Python and against a suffix array."""

from __future__ import annotations

import random

import numpy as np
import pytest

from coretrain.corpus.dedup import substring
from coretrain.corpus.dedup.parts import content_hash, open_parts
from coretrain.corpus.dedup.substring import Substrings, cuts, edited, hashed, list_part, ranges, repeats
from coretrain.corpus.document import Document
from tests.support.near_documents import parts_of, text
from tests.support.refusal import refused


def cut_all(folder, documents, form, parts=1, pieces=1, known=0, priority=()):
    """The texts without what occurs twice, by id; the first `known` documents are a part known before."""
    folder.mkdir()
    opened = parts_of(documents[known:], parts)
    paths = [folder / f"list{index}" for index in range(parts)]
    old = [folder / "old"] if known else []
    for path, one in zip([*old, *paths], [lambda: documents[:known], *opened][1 - len(old) :], strict=True):
        list_part(one(), path, form)
    every = open_parts(paths, form.described, old)
    readers = [lambda: iter(documents[:known]), *opened][1 - len(old) :]
    files = [folder / f"windows{piece}" for piece in range(pieces)]
    for piece, path in enumerate(files):
        repeats(every, readers, form, path, priority, piece, pieces)
    found = {}
    for part, one in zip(every.parts, readers, strict=True):
        found |= {each.id: each.text for each in edited(one(), files, form, part.first, part.documents)}
    return found


def plain_cut(documents, n):
    """The same by plain Python: every window in a table, of bytes; those behind the first go, unless a first one is
    there."""
    seen: dict[bytes, list[tuple[str, int]]] = {}
    for one in sorted(documents, key=lambda one: (content_hash(one.text.encode()), one.id)):
        raw = one.text.encode()
        for at in range(len(raw) - n + 1):
            seen.setdefault(raw[at : at + n], []).append((one.id, at))
    gone, stays = set(), set()
    for places in seen.values():
        if len(places) > 1:
            stays |= {(places[0][0], places[0][1] + k) for k in range(n)}
            gone |= {(name, at + k) for name, at in places[1:] for k in range(n)}
    gone -= stays
    return {one.id: bytes(b for at, b in enumerate(one.text.encode()) if (one.id, at) not in gone) for one in documents}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("letters", ["ab", "abcdefghijkl"])
def test_cuts_are_those_of_plain_python(tmp_path, parts, pieces, letters):
    draw = random.Random(0)
    documents = [Document(f"{n}", "".join(draw.choices(letters, k=draw.randint(0, 60)))) for n in range(14)]
    documents += [Document("x", documents[3].text + documents[5].text), Document("y", documents[3].text)]
    expected = plain_cut(documents, 9)
    for seed in range(2):
        random.Random(seed).shuffle(documents)
        found = cut_all(tmp_path / f"{seed}", documents, Substrings("byte", 9), parts, pieces)
        assert {name: one.encode() for name, one in found.items()} == expected


def test_windows_are_those_of_a_suffix_array():
    """Places whose window occurs twice: where a neighbour in the suffix array shares so many bytes."""
    pydivsufsort = pytest.importorskip("pydivsufsort")
    draw, n = np.random.default_rng(1), 12
    raw = draw.integers(97, 100, 3000).astype(np.uint8)
    raw[2000:2300] = raw[100:400]
    order = pydivsufsort.divsufsort(raw.copy())
    shared = pydivsufsort.kasai(raw.copy(), order)  # of each suffix with the next one in order
    twice = np.zeros(len(raw), np.bool_)
    twice[order[:-1]] |= shared[: len(raw) - 1] >= n
    twice[order[1:]] |= shared[: len(raw) - 1] >= n
    first, second = hashed([raw.tobytes().decode()], Substrings("byte", n))
    for values in (first.values, second.values):
        _, which, count = np.unique(values, return_inverse=True, return_counts=True)
        np.testing.assert_array_equal(count[which] > 1, twice[: len(raw) - n + 1])
    assert 300 < twice.sum() < 3000


def test_the_copy_that_stays_is_that_of_the_wanted_source(tmp_path):
    shared = text(random.Random(2), 40)
    documents = [
        Document("a", f"Begin. {shared} End of a.", {"source": "web"}),
        Document("b", f"Other. {shared} End of b.", {"source": "books"}),
    ]
    for wanted, gone in (("web", "b"), ("books", "a")):
        found = cut_all(tmp_path / wanted, documents, Substrings(), priority=[wanted])
        assert found[gone] == {"a": "Begina.", "b": "Otherb."}[gone]
        assert all(found[one.id] == one.text for one in documents if one.id != gone)


@pytest.mark.parametrize(("length", "cut"), [(99, False), (100, True)])
def test_a_hundred_bytes_are_a_copy_and_ninety_nine_are_not(tmp_path, length, cut):
    shared = "".join(random.Random(3).choices("abcdefgh", k=length))
    documents = [Document("one", f"({shared})"), Document("two", f"[{shared}]")]
    found = cut_all(tmp_path / "work", documents, Substrings())
    assert sorted(map(len, found.values())) == ([2, 102] if cut else [101, 101])


def test_no_character_is_cut_in_two(tmp_path):
    """Where texts share bytes of a character, but not all of them."""
    body = "x" * 40 + "".join(random.Random(4).choices("\u4e16\u754c\u4f60\u597d", k=60))
    documents = [Document("one", f"\u00e9{body}\u4e01"), Document("two", f"\u0129{body}\u4e02")]  # one byte alike
    assert documents[0].text.encode()[1] == documents[1].text.encode()[1]
    found = cut_all(tmp_path / "work", documents, Substrings())
    assert sorted(found.values(), key=len)[0] in ("\u00e9\u4e01", "\u0129\u4e02")


def test_copies_are_found_by_words(tmp_path):
    shared = text(random.Random(5), 50)
    loud = shared.upper().replace(" ", ",  ")
    documents = [Document("one", f"Here: {shared}!"), Document("two", f"There; {loud}? Yes.")]
    form = Substrings("word", 50)
    found = cut_all(tmp_path / "work", documents, form)
    assert sorted(found.values(), key=len)[0] in ("Here: !", "There; ? Yes.")
    assert cut_all(tmp_path / "more", documents, Substrings("word", 51)) == {one.id: one.text for one in documents}


def test_documents_known_before_keep_all(tmp_path):
    shared = text(random.Random(6), 60)
    documents = [Document("old", f"{shared} {shared}"), Document("new", f"fresh {shared} words")]
    found = cut_all(tmp_path / "work", documents, Substrings(), known=1)
    assert found["old"] == documents[0].text
    assert shared not in found["new"]


def test_a_repeated_character_stays_once(tmp_path):
    documents = [Document("one", "a" * 1000)]
    assert cut_all(tmp_path / "work", documents, Substrings()) == {"one": "a" * 100}


def test_memory_is_bounded_by_ranges(tmp_path):
    list_part([Document("a", "\u00e9" * 500)], tmp_path / "list", Substrings())
    parts = open_parts([tmp_path / "list"], Substrings().described)
    assert [ranges(parts, memory) for memory in (10**6, 10**5, 50_000, 49_999)] == [1, 1, 2, 3]


def test_fields_and_files_that_make_no_sense_are_refused(tmp_path):
    with refused("corpus/substring-unit-unknown", "did you mean byte?", "bytes"):
        Substrings("bytes")
    with refused("corpus/substring-length", "dedup.substring = 7", "8"):
        Substrings("byte", 7)
    cut_all(tmp_path / "work", [Document("a", "b")], Substrings())
    with refused("corpus/substrings-made-otherwise", "windows0"):
        cuts([tmp_path / "work" / "windows0"], Substrings("byte", 50), 0, 1)


def test_batches_of_documents_change_nothing(tmp_path, monkeypatch):
    draw = random.Random(7)
    shared = text(draw, 40)
    documents = [Document(f"{n}", f"{text(draw, 5)} {shared} {text(draw, 5)}") for n in range(6)]
    whole = cut_all(tmp_path / "whole", documents, Substrings(), 2)
    monkeypatch.setattr(substring, "BATCH_CHARACTERS", 1)
    assert cut_all(tmp_path / "single", documents, Substrings(), 2) == whole
    assert sum(shared in one for one in whole.values()) == 1


@pytest.mark.parametrize("form", [Substrings(), Substrings("word", 3)])
def test_the_second_hash_is_another(form):
    first, second = hashed([text(random.Random(8), 200)], form)
    assert not set(first.values.tolist()) & set(second.values.tolist())
    assert len(set(second.values.tolist())) == len(second.values) > 100

"""Equal documents, repeated lines and SimHash against plain Python, in any order and however the input is cut."""

from __future__ import annotations

import hashlib
import itertools
import random

import numpy as np
import pytest

from coretrain.corpus.dedup import lines, simhash
from coretrain.corpus.dedup.exact import described, digest_part, equal, exact_duplicates
from coretrain.corpus.dedup.lines import joined, line_key, lines_part, repeated, spans, without
from coretrain.corpus.dedup.pairs import unpacked
from coretrain.corpus.dedup.parts import Table, content_hash, open_parts, write_keys
from coretrain.corpus.dedup.shingles import Shingling, shingles
from coretrain.corpus.dedup.simhash import SimHash, simhash_duplicates, simhash_part, simhashes
from coretrain.corpus.document import Document
from tests.support.near_documents import edited, kept_ids, parts_of, text
from tests.support.refusal import refused

SAME = [
    Document("a", "The cat, 12 years old.", {"source": "web"}),
    Document("b", "the CAT\n15 years old", {"source": "books"}),
    Document("c", "the cat years old", {"source": "web"}),
    Document("d", "The cat, 12 years old.", {"source": "web"}),
    Document("e", "!!!", {"source": "web"}),
    Document("f", "???", {"source": "web"}),
]


def keep_of(folder, documents, parts, compared, **more):
    """What exact deduplication keeps of documents cut into parts."""
    folder.mkdir()
    paths = [folder / f"keys{index}" for index in range(parts)]
    for path, one in zip(paths, parts_of(documents, parts), strict=True):
        digest_part(one(), path, compared)
    return exact_duplicates(paths, compared, **more)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("pieces", [1, 5])
def test_equal_documents_are_found_by_words_and_by_bytes(tmp_path, parts, pieces):
    for number, order in enumerate(itertools.islice(itertools.permutations(SAME), 0, 720, 240)):
        kept = keep_of(tmp_path / f"words{number}", order, parts, "words", pieces=pieces, priority=["books"])
        assert kept_ids(kept) == {"b", "c", "e", "f"}  # documents without words are no copies of each other
        assert kept.removed == {"books": 0, "web": 2}
        kept = keep_of(tmp_path / f"text{number}", order, parts, "text", pieces=pieces)
        assert kept_ids(kept) == {"a", "b", "c", "e", "f"}  # equal texts: the smaller id


def test_documents_known_before_count_as_kept(tmp_path):
    digest_part(SAME[:1], tmp_path / "old")
    kept = keep_of(tmp_path / "work", SAME[1:], 2, "words", known=[tmp_path / "old"])
    assert kept_ids(kept) == {"c", "e", "f"}


def test_documents_without_words_are_counted(tmp_path):
    assert digest_part(SAME, tmp_path / "keys") == 2
    assert digest_part([*SAME, Document("g", "")], tmp_path / "keys", "text") == 1


def test_what_can_be_compared_is_refused_by_name():
    with refused("corpus/exact-unknown", "did you mean words?", "dedup.exact = word"):
        described("word")
    with refused("corpus/line-unit-unknown", "dedup.unit = lines", "did you mean line?"):
        lines.described("lines")
    with refused("corpus/simhash-distance", "dedup.simhash_distance = 9"):
        SimHash(distance=9)


def test_a_line_has_the_key_of_ccnet():
    """Recorded by hand: the SHA-1 of "hello, world 00 ok" begins so; ASCII punctuation stays, other goes."""
    expected = int.from_bytes(hashlib.sha1(b"hello, world 00 ok").digest()[:8], "little")
    assert line_key("  Hello, World 4\u0662 ok\u2026\x07\u3002") == expected
    assert line_key("\u3002\u2026 \t") == 0 == line_key("")
    assert line_key("a") != line_key("b")


def test_spans_cover_a_text():
    assert spans("a\n\nb\n", "line") == [(0, 1, 2), (2, 2, 3), (3, 4, 5), (5, 5, 5)]
    assert spans("a\nb\n\n\nc", "paragraph") == [(0, 3, 6), (6, 7, 7)]
    assert spans("", "line") == [(0, 0, 0)]


@pytest.mark.parametrize(
    ("gone", "left"), [([], "a\nb\n\nc"), ([0], "b\n\nc"), ([1], "a\n\nc"), ([3], "a\nb"), ([0, 1, 2, 3], "")]
)
def test_lines_are_cut_out(gone, left):
    assert without("a\nb\n\nc", "line", np.array(gone, np.int64)) == left


def plain_cut(documents, priority):
    """Which lines go, by plain Python: (id, line)."""
    rank = {name: at for at, name in enumerate(priority)}
    order = sorted(
        documents, key=lambda one: (rank.get(one.metadata["source"], 9), content_hash(one.text.encode()), one.id)
    )
    seen, gone = set(), set()
    for one in order:
        for place, line in enumerate(one.text.split("\n")):
            key = line_key(line)
            if key and key in seen:
                gone.add((one.id, place))
            seen.add(key)
    return gone


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("pieces", [1, 4])
def test_of_repeated_lines_one_stays(tmp_path, parts, pieces):
    draw = random.Random(0)
    stock = [text(draw, 4) for _ in range(30)] + ["", "!", "Page 1", "page 2"]
    documents = [
        Document(f"{n}", "\n".join(draw.choices(stock, k=6)), {"source": draw.choice(["web", "books"])})
        for n in range(25)
    ]
    documents.append(Document("twin", documents[3].text, {"source": documents[3].metadata["source"]}))
    for seed in range(2):
        random.Random(seed).shuffle(documents)
        paths = [tmp_path / f"{seed}-{index}" for index in range(parts)]
        for path, one in zip(paths, parts_of(documents, parts), strict=True):
            lines_part(one(), path)
        opened = open_parts(paths, lines.described("line"))
        cut = joined([repeated(opened, ["books"], piece, pieces) for piece in range(pieces)])
        found = {(documents[n].id, place) for n, place in zip(cut.numbers.tolist(), cut.places.tolist(), strict=True)}
        assert found == plain_cut(documents, ["books"])
        left = list(lines.edited(documents, 0, cut, "line"))
        assert [one.id for one in left] == [one.id for one in documents]
        for one, was in zip(left, documents, strict=True):
            rows = enumerate(was.text.split("\n"))
            assert one.text.rstrip("\n") == "\n".join(
                row for place, row in rows if (was.id, place) not in found
            ).rstrip("\n")
        for number, one in enumerate(documents):
            assert sorted(place for name, place in found if name == one.id) == cut.of(number).tolist()


def test_known_documents_keep_their_lines(tmp_path):
    lines_part([Document("old", "one line\nanother"), Document("old2", "one line")], tmp_path / "old")
    lines_part([Document("new", "fresh\nOne  line"), Document("newer", "one line\nend")], tmp_path / "new")
    cut = repeated(open_parts([tmp_path / "new"], lines.described("line"), [tmp_path / "old"]))
    assert cut.numbers.tolist() == [3]
    assert cut.places.tolist() == [0]


def test_simhash_is_a_vote_on_each_bit(monkeypatch):
    monkeypatch.setattr(simhash, "SHINGLES_AT_A_TIME", 7)
    draw = random.Random(1)
    found = shingles([text(draw, length) for length in (3, 2, 40, 4, 10, 0)], Shingling(3))
    signed = simhashes(found).tolist()
    for document, value in enumerate(signed):
        votes = found.of(document).tolist()
        bits = [2 * sum(vote >> bit & 1 for vote in votes) > len(votes) for bit in range(64)]
        assert value == sum(1 << bit for bit, one in enumerate(bits) if one)


@pytest.mark.parametrize("distance", [0, 3, 8])
def test_tables_miss_no_pair_within_the_distance(distance):
    """Whatever bits differ, there is a table that has none of them; and tables differ from each other."""
    masks = [int(one) for one in SimHash(distance=distance).masks()]
    assert len(set(masks)) == len(masks) == (distance + 2) * (distance + 1) // 2
    assert sum(masks) == (distance + 1) * (2**64 - 1)  # each bit in so many tables
    draw = random.Random(2)
    for _ in range(300):
        changed = sum(1 << bit for bit in draw.sample(range(64), distance))
        assert any(not mask & changed for mask in masks)


def test_simhash_finds_what_plain_python_finds(tmp_path):
    draw, documents = random.Random(3), []
    for number in range(40):
        original = text(draw, 400)
        documents.append(Document(f"{number}", original))
        documents += [Document(f"{number}.{n}", edited(draw, original, n)) for n in range(1, 5) if number % 2]
    draw.shuffle(documents)
    form = SimHash()
    values = simhashes(shingles([one.text for one in documents], form.shingling)).tolist()
    near = {
        (a, b) for a, b in itertools.combinations(range(len(values)), 2) if (values[a] ^ values[b]).bit_count() <= 3
    }
    together = {at: {at} for at in range(len(values))}
    for a, b in near:
        merged = together[a] | together[b]
        for one in merged:
            together[one] = merged
    expected = {min(group, key=lambda at: content_hash(documents[at].text.encode())) for group in together.values()}
    for parts, pieces in ((1, 1), (3, 2)):
        paths = [tmp_path / f"{parts}-{index}" for index in range(parts)]
        for path, one in zip(paths, parts_of(documents, parts), strict=True):
            assert simhash_part(one(), path, form) == 0
        kept, led = simhash_duplicates(paths, form, pieces=pieces)
        assert led == 0
        assert kept_ids(kept) == {documents[at].id for at in expected}
    assert 40 < len(expected) < len(documents) - 10


def test_half_of_a_hash_is_not_enough(tmp_path):
    """Documents whose hashes agree in 64 of 128 bits are two."""
    table = Table()
    table.add([Document(f"{n}", f"{n}") for n in range(4)])
    digest = np.array([[7, 1], [7, 2], [8, 2], [7, 2]], np.uint64)
    rows = np.arange(4, dtype=np.uint32)
    write_keys(tmp_path / "keys", described("words"), table, digest[:, :1].T, rows, {"digest": digest})
    found = equal(open_parts([tmp_path / "keys"], described("words")))
    assert [one.tolist() for one in unpacked(found)] == [[1], [3]]

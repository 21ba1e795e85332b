"""Benchmarks found in documents, and cut out: against plain Python, with what lies near the borders."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest
import zstandard

from coretrain.corpus.decontaminate import index as index_module
from coretrain.corpus.decontaminate.benchmarks import Item, items, name_of
from coretrain.corpus.decontaminate.hits import Hit, find, summed, write_hits
from coretrain.corpus.decontaminate.index import Grams, read_index, write_index
from coretrain.corpus.decontaminate.step import Decontaminate, cut
from coretrain.corpus.document import Batch, Document
from coretrain.corpus.rules import first_broken
from tests.support.near_documents import text
from tests.support.refusal import refused

DRAW = random.Random(0)
QUESTION, LONG, SHORT, TINY = (text(DRAW, length) for length in (20, 40, 9, 7))


def write_rows(path, rows):
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def made(tmp_path):
    """An index of two benchmarks."""
    quiz = write_rows(
        tmp_path / "quiz.jsonl",
        [{"question": QUESTION, "choices": [SHORT, "yes"], "id": "q1"}, {"question": TINY, "choices": [], "id": "q2"}],
    )
    story = tmp_path / "story.txt"
    story.write_text(f"{LONG}\n\n{QUESTION}\n")
    told = write_index([story, quiz], tmp_path / "index")
    return read_index(tmp_path / "index"), told


def test_what_was_indexed_is_told(made):
    index, told = made
    assert [(one["name"], one["items"], one["too_short"]) for one in told] == [("quiz", 6, 4), ("story", 2, 0)]
    assert told[0]["fields"] == ["question", "choices.0", "choices.1", "id"]
    assert index.benchmarks == told
    assert index.lengths == [13, 9]
    # quiz: 20 - 12 of the question and the short item whole; story: 40 - 12, and the question again
    assert len(index.data["hashes"]) == 8 + 1 + 28 + 8


def plain_hits(document, items_, n=13, shortest=8):
    """Places of words that an item's n-gram begins at, by plain Python on folded texts."""
    words = document.split()
    found = set()
    for item in items_:
        parts = item.split()
        length = min(n, len(parts))
        if len(parts) < shortest:
            continue
        grams = {tuple(parts[at : at + length]) for at in range(len(parts) - length + 1)}
        found |= {(at, length) for at in range(len(words)) if tuple(words[at : at + length]) in grams}
    return found


def test_hits_are_those_of_plain_python(made):
    index, _ = made
    draw = random.Random(1)
    every = [QUESTION, LONG, SHORT, TINY]
    for trial in range(60):
        parts = []
        for _ in range(draw.randint(1, 4)):
            words = draw.choice(every).split()
            begin = draw.randint(0, len(words) // 3)
            parts += [text(draw, draw.randint(0, 15)), " ".join(words[begin : len(words) - draw.randint(0, 3)])]
        document = " ".join(" ".join(parts).split())
        expected = plain_hits(document, every)
        covered = set()
        for at, length in expected:
            covered |= set(range(at, at + length))
        found = set()
        ends = np.cumsum([len(word) + 1 for word in document.split()])
        for hit in find([document], index)[0]:
            first, last = np.searchsorted(ends, [hit.begin, hit.end - 1], "right")
            found |= set(range(int(first), int(last) + 1))
        assert found == covered, trial


@pytest.mark.parametrize("shared", [12, 13, 14])
def test_thirteen_words_are_a_hit_and_twelve_are_not(made, shared):
    index, _ = made
    words = LONG.split()[5 : 5 + shared]
    document = "Before it, (" + ", ".join(word.upper() for word in words) + ")! After it."
    hits = find([document, "nothing here", ""], index)
    assert hits[1:] == [[], []]
    if shared == 12:
        assert hits[0] == []
        return
    (hit,) = hits[0]
    assert (hit.benchmark, hit.row, hit.field, hit.ngrams) == ("story", 1, "", shared - 12)
    assert document[hit.begin : hit.end].lower() == ", ".join(words)


def test_a_hit_is_told_of_every_benchmark_that_has_it(made):
    index, _ = made
    hits = find(["x " + QUESTION], index)[0]
    assert [(hit.benchmark, hit.row, hit.field, hit.ngrams) for hit in hits] == [
        ("quiz", 1, "question", 8),
        ("story", 2, "", 8),
    ]


def test_short_items_are_found_whole_and_shorter_ones_are_not(made):
    index, _ = made
    assert [hit.field for hit in find([f"a {SHORT} b"], index)[0]] == ["choices.0"]
    assert find([" ".join(SHORT.split()[:8]), f"a {TINY} b", "yes q1"], index) == [[], [], []]


def test_words_decide_not_hashes(made, monkeypatch):
    """Every n-gram of the document collides with one of the index, and none is a hit."""
    from coretrain.corpus.decontaminate import hits as hits_module

    index, _ = made
    real = hits_module.ngrams
    wanted = index.by_length[13][0].hashes

    def colliding(hashes, n):
        found = real(hashes, n)
        return type(found)(np.resize(wanted, len(found.values)), found.starts)

    monkeypatch.setattr(hits_module, "ngrams", colliding)
    document = text(random.Random(5), 60)
    assert find([document], index) == [[]]


def test_an_index_depends_on_the_files_alone(tmp_path, monkeypatch):
    one = write_rows(tmp_path / "a.jsonl", [{"text": text(random.Random(n), n)} for n in range(5, 30)])
    two = write_rows(tmp_path / "b.jsonl", [{"text": text(random.Random(n), n)} for n in range(20, 25)])
    write_index([one, two], tmp_path / "index1")
    monkeypatch.setattr(index_module, "ITEMS_AT_A_TIME", 3)
    write_index([two, one], tmp_path / "index2")
    assert (tmp_path / "index1").read_bytes() == (tmp_path / "index2").read_bytes()


def test_every_kind_of_file_gives_the_same_items(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = [{"q": "one two", "c": {"text": ["a", "b"], "label": 1}}, {"q": "three", "c": {"text": [], "label": 2}}]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\n\n", 1))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(raw, mtime=0))
    (tmp_path / "X.JSONL.ZST").write_bytes(zstandard.compress(raw))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    expected = [("q", "one two"), ("c.text.0", "a"), ("c.text.1", "b"), ("q", "three")]
    for name in ("x.jsonl", "x.jsonl.gz", "X.JSONL.ZST", "x.parquet"):
        assert sorted((one.field, one.text) for one in items(tmp_path / name)) == sorted(expected), name
        assert name_of(tmp_path / name).lower() == "x"
        assert [one.text for one in items(tmp_path / name, ["c.text", "c"])] == ["a", "b"]
    assert [one.row for one in items(tmp_path / "x.jsonl.gz", ["q"])] == [1, 2]
    (tmp_path / "x.txt").write_bytes(b"one\r\ntwo\r\n\r\n three\n\n\n\n")
    assert list(items(tmp_path / "x.txt")) == [Item(1, "", "one\ntwo"), Item(2, "", " three")]


def test_bad_benchmarks_are_refused_by_name(tmp_path):
    good = write_rows(tmp_path / "good.jsonl", [{"text": LONG}])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": \n')
    with refused("corpus/benchmark-bad-json", str(bad), "line 2"):
        list(items(bad))
    with refused("corpus/benchmark-row-not-an-object", "row 1", "[1]"):
        list(items(write_rows(tmp_path / "list.jsonl", [[1]])))
    with refused("corpus/benchmark-field-missing", "answer"):
        list(items(good, ["answer", "text"]))
    with refused("corpus/benchmark-kind-unknown", "x.csv", ".jsonl"):
        list(items(tmp_path / "x.csv"))
    with refused("corpus/benchmark-unreadable", "none.jsonl"):
        list(items(tmp_path / "none.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:-9])
    with refused("corpus/benchmark-damaged", "cut.jsonl.gz"):
        list(items(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 no more")
    with refused("corpus/benchmark-damaged", "cut.parquet"):
        list(items(tmp_path / "cut.parquet"))
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe\x00")
    with refused("corpus/benchmark-not-text", "odd.txt"):
        list(items(tmp_path / "odd.txt"))
    (tmp_path / "more").mkdir()
    with refused("corpus/benchmark-twice", "good"):
        write_index([good, write_rows(tmp_path / "more" / "good.jsonl", [{}])], tmp_path / "index")
    with refused("corpus/benchmarks-empty", "tiny"):
        write_index([write_rows(tmp_path / "tiny.jsonl", [{"text": TINY}])], tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_fields_that_make_no_sense_are_refused():
    with refused("corpus/decontaminate-n", "0"):
        Grams(0)
    with refused("corpus/decontaminate-shortest", "14"):
        Grams(13, 14)
    with refused("corpus/decontaminate-mode", "did you mean cut?"):
        Decontaminate("index", mode="cuts")
    with refused("corpus/decontaminate-number", "decontaminate.margin = -1"):
        Decontaminate("index", margin=-1)


def test_a_damaged_index_is_refused(made, tmp_path):
    raw = bytearray((tmp_path / "index").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "flipped").write_bytes(raw)
    with refused("corpus/arrays-checksum-wrong", "flipped"):
        read_index(tmp_path / "flipped")
    with refused("corpus/arrays-unreadable", "nowhere"):
        Decontaminate(str(tmp_path / "nowhere")).run(Batch([Document("a", "b")]))


def batch_of(*texts):
    """Documents of these texts."""
    return Batch([Document(f"{n}", one) for n, one in enumerate(texts)])


def test_documents_with_hits_are_dropped(made, tmp_path):
    step = Decontaminate(str(tmp_path / "index"))
    batch = batch_of("clean", f"x {LONG}", "")
    after = step.run(batch)
    assert after.texts == batch.texts
    assert after.signals["decontaminate.hits"].tolist() == [0, 1, 0]
    assert first_broken(step.rules(), after.signals, 3).tolist() == [-1, 0, -1]


def test_hits_are_cut_out_with_a_margin(made, tmp_path):
    step = Decontaminate(str(tmp_path / "index"), mode="cut", margin=5, piece=4, cuts=2)
    unit = f"0123456789 {SHORT} 0123456789"
    after = step.run(batch_of(unit, SHORT, "clean", "", "\n".join([unit] * 3), f"0123456{SHORT}"))
    assert after.texts[:4] == ["012345\n\n456789", "", "clean", ""]
    assert after.signals["decontaminate.cuts"].tolist() == [1, 1, 0, 0, 3, 0]
    assert first_broken(step.rules(), after.signals, 6).tolist() == [-1, 1, -1, -1, 0, -1]


@pytest.mark.parametrize(
    ("hits", "pieces", "cuts"),
    [
        ([(0, 10)], ["345678901234567890123456789"], 1),
        ([(20, 40)], ["01234567890123456"], 1),
        ([(5, 10), (16, 20)], ["01", "34567890123456789"], 1),
        ([(5, 10), (17, 20)], ["01", "3", "34567890123456789"], 2),
        ([(10, 12), (5, 20)], ["01", "34567890123456789"], 1),
        ([(0, 40)], [], 1),
        ([], ["0123456789" * 4], 0),
    ],
)
def test_cuts_are_counted_where_margins_do_not_touch(hits, pieces, cuts):
    made = [Hit(begin, end, "b", 1, "", 1) for begin, end in hits]
    assert cut("0123456789" * 4, made, 3, 0) == (pieces, cuts)


def test_pieces_that_are_too_short_go():
    assert cut("abc" + "x" * 10 + "defg", [Hit(3, 13, "b", 1, "", 1)], 0, 4) == (["defg"], 1)


def test_hits_are_written_and_counted(made, tmp_path):
    index, _ = made
    texts = [f"a {QUESTION}", "nothing", f"{SHORT} and {SHORT}"]
    hits = find(texts, index)
    told = write_hits(tmp_path / "hits.jsonl", zip("abc", texts, hits, strict=True))
    assert told == {
        "quiz": {"hits": 3, "ngrams": 10, "documents": 2},
        "story": {"hits": 1, "ngrams": 8, "documents": 1},
    }
    lines = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [(one["id"], one["benchmark"], one["row"]) for one in lines] == [
        ("a", "quiz", 1),
        ("a", "story", 2),
        ("c", "quiz", 1),
        ("c", "quiz", 1),
    ]
    assert lines[0]["text"] == QUESTION[:200]
    assert summed([told, {}, told])["quiz"] == {"hits": 6, "ngrams": 20, "documents": 4}


def test_an_item_within_another_is_one_hit(tmp_path):
    """Of 9 words within 40, all of the same benchmark: the hit reaches to the end of the longer one."""
    inner = " ".join(LONG.split()[9:18])
    write_rows(tmp_path / "both.jsonl", [{"text": LONG}, {"text": inner}])
    write_index([tmp_path / "both.jsonl"], tmp_path / "index")
    document = f"x {' '.join(LONG.split()[:20])} y"
    (hit,) = find([document], read_index(tmp_path / "index"))[0]
    assert document[hit.begin : hit.end] == " ".join(LONG.split()[:20])
    assert (hit.row, hit.ngrams) == (1, 8 + 1)
    first = " ".join(LONG.split()[7:19])  # the inner one alone, and three words more
    (hit,) = find([first], read_index(tmp_path / "index"))[0]
    assert (first[hit.begin : hit.end], hit.row, hit.ngrams) == (inner, 2, 1)


def test_what_a_benchmark_has_twice_counts_once(tmp_path):
    write_rows(tmp_path / "twice.jsonl", [{"text": QUESTION}, {"text": QUESTION}])
    told = write_index([tmp_path / "twice.jsonl"], tmp_path / "index")
    assert told[0]["items"] == 2
    (hit,) = find([QUESTION], read_index(tmp_path / "index"))[0]
    assert (hit.row, hit.ngrams) == (1, 8)

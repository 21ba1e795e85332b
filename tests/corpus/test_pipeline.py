"""From input to sealed documents: the same bytes however it is carried out, and known reasons for what goes."""

import json
import random
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from coretrain.corpus.engine.open import open_engine
from coretrain.corpus.engine.pool import Pool
from coretrain.corpus.engine.run import Here
from coretrain.corpus.pipeline.corpus import make_corpus, outcome, retune
from coretrain.corpus.pipeline.folder import read_recipe
from coretrain.corpus.pipeline.seal import WORK, read_seal
from coretrain.corpus.pipeline.why import why
from coretrain.corpus.pipeline.write import Slice, cut
from coretrain.corpus.report.funnel import as_text, funnel, shares
from tests.support.commands import environment
from tests.support.recipes import published, small_recipe, text, write_input, write_rows
from tests.support.refusal import refused


def quiet(line):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An input, and the corpus of it that this process alone makes."""
    folder = tmp_path_factory.mktemp("whole")
    paths = write_input(folder / "in")
    make_corpus(small_recipe(paths), folder / "out", Here, say=quiet)
    return folder, paths, published(folder / "out")


def rows(out, what):
    return [row for path in sorted(out.glob(f"{what}/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_document_is_kept_or_dropped_for_a_known_reason(whole):
    folder, _, _ = whole
    kept, dropped = rows(folder / "out", "documents"), rows(folder / "out", "dropped")
    assert sorted(row["id"] for row in kept + dropped) == sorted({row["id"] for row in kept + dropped})
    assert len(kept) + len(dropped) == 60
    reason = {row["url"]: row["rule"] for row in dropped}
    numbers = {int(url.rsplit("/", 1)[1]): rule for url, rule in reason.items()}
    short = dict.fromkeys(range(3, 60, 10), "gopher.min_words")
    assert {number: rule for number, rule in numbers.items() if rule == "gopher.min_words"} == short
    pairs = {number // 10 for number, rule in numbers.items() if rule == "exact" and number % 10 in (4, 5)}
    assert pairs == set(range(6))
    assert {number // 10 for number, rule in numbers.items() if rule == "near"} == set(range(6))
    assert len(numbers) == 18


def test_what_was_dropped_has_its_numbers(whole):
    folder, _, _ = whole
    dropped = {row["url"].rsplit("/", 1)[1]: row for row in rows(folder / "out", "dropped")}
    kept = {row["id"] for row in rows(folder / "out", "documents")}
    assert (dropped["13"]["value"], dropped["13"]["limit"]) == (2.0, 50.0)
    assert dropped["13"]["copy_of"] is None
    assert all(row["copy_of"] in kept for row in dropped.values() if row["rule"] in ("exact", "near"))


def test_documents_carry_their_metadata(whole):
    folder, _, _ = whole
    row = next(row for row in rows(folder / "out", "documents") if row["url"] == "https://x.example/0")
    assert row["source"] == "s0"
    assert json.loads(row["metadata"])["file"] == "part-0.jsonl"
    assert row["text"] == text(0)


def test_files_hold_the_documents_that_the_recipe_says(whole):
    folder, _, _ = whole
    counts = [pq.read_metadata(path).num_rows for path in sorted((folder / "out/documents").iterdir())]
    assert counts == [7] * 6
    assert [file.documents for file in read_seal(folder / "out").files] == counts


@pytest.mark.whole
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bytes(whole, tmp_path, workers):
    _, paths, expected = whole
    make_corpus(small_recipe(paths), tmp_path / "out", lambda folder: Pool(folder, workers), say=quiet)
    assert published(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bytes(whole, tmp_path):
    """One that this test starts on this machine; Ray is the extra `ray`."""
    pytest.importorskip("ray")
    _, paths, expected = whole
    make_corpus(small_recipe(paths), tmp_path / "out", open_engine("ray://local", 2, []), say=quiet)
    assert published(tmp_path / "out") == expected


def test_order_and_place_of_files_change_nothing(whole, tmp_path):
    folder, _, expected = whole
    shutil.copytree(folder / "in", tmp_path / "elsewhere")
    paths = [str(path) for path in (tmp_path / "elsewhere").iterdir()]
    random.Random(4).shuffle(paths)
    make_corpus(small_recipe(paths[::-1]), tmp_path / "out", Here, say=quiet)
    assert published(tmp_path / "out") == expected


def test_pieces_and_memory_change_nothing(tmp_path):
    paths = write_input(tmp_path / "in", 220, 2)
    seen = []
    for index, size in enumerate((2**16, 90_000, 2**26)):
        execution = {"piece_bytes": size, "memory": 2**20 if index else 2**30}
        made = make_corpus(small_recipe(paths, execution=execution), tmp_path / f"{index}", Here, say=quiet)
        seen.append((published(tmp_path / f"{index}"), len(made.pieces)))
    assert seen[0][0] == seen[1][0] == seen[2][0]
    assert seen[0][1] > seen[1][1] > seen[2][1] == 2


def test_what_is_finished_isnt_done_again(whole, monkeypatch, tmp_path):
    folder, paths, expected = whole
    shutil.copytree(folder / "out", tmp_path / "out")

    class Refusing(Here):
        def run(self, tasks):
            raise AssertionError(list(tasks))

    make_corpus(small_recipe(paths), tmp_path / "out", Refusing, say=quiet)
    assert published(tmp_path / "out") == expected


def test_other_limits_need_no_input(whole, tmp_path):
    """retune gives, to the byte, what a run with those limits from the start gives."""
    folder, paths, _ = whole
    limits = {"c4": {"min_sentences": 2}, "gopher": {"min_words": 1, "min_stop_words": "off", "max_words": 194}}
    direct = small_recipe(paths, filters=limits, dedup={"threshold": 0.9})
    make_corpus(direct, tmp_path / "direct", Here, say=quiet)
    shutil.copytree(folder / "out", tmp_path / "out")
    gone = [shutil.move(path, tmp_path) for path in paths]
    try:
        retune(tmp_path / "out", lambda before: direct, Here, quiet)
    finally:
        for path, old in zip(gone, paths, strict=True):
            shutil.move(path, old)
    assert published(tmp_path / "out") == published(tmp_path / "direct")
    assert read_recipe(tmp_path / "out") == direct


def test_retune_refuses_what_would_need_reading(whole, tmp_path):
    folder, paths, expected = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    for more in ({"steps": ["gopher", "c4"]}, {"options": {"c4": {"policy": False}}}, {"extract": {"kind": "none"}}):
        with refused("corpus/retune-needs-reading", next(iter(more))):
            retune(tmp_path / "out", lambda before, more=more: small_recipe(paths, **more), Here, quiet)
    with refused("corpus/retune-other-input"):
        retune(tmp_path / "out", lambda before: small_recipe(paths[:1]), Here, quiet)
    with refused("corpus/no-corpus-here", "nowhere"):
        retune(tmp_path / "nowhere", lambda before: before, Here, quiet)
    assert published(tmp_path / "out") == expected


def test_a_limit_of_a_gate_can_be_lowered_only_for_what_it_let_through(tmp_path):
    """What a gate has stopped stays dropped when its limit is lowered, and is told."""
    paths = write_input(tmp_path / "in", 20, 1)
    gated = {"steps": ["page", "gopher", "c4"], "rules": ["page", "gopher", "c4"], "gates": ["page"]}
    strict = small_recipe(paths, **gated, filters={"page": {"min_characters": 100}, "c4": {"min_sentences": 1}})
    loose = small_recipe(
        paths, **gated, filters={"c4": {"min_sentences": 1}, "gopher": {"min_words": 1, "min_stop_words": 0}}
    )
    make_corpus(strict, tmp_path / "out", Here, say=quiet)
    said = []
    retune(tmp_path / "out", lambda before: loose, Here, said.append)
    reasons = [row["rule"] for row in rows(tmp_path / "out", "dropped")]
    assert reasons.count("gate") == 2
    assert any(line.startswith("2 documents that the limits now keep were stopped by a gate") for line in said)
    tight = small_recipe(paths, **gated, filters={"page": {"min_characters": 100, "max_digits": 0.0}})
    retune(tmp_path / "out", lambda before: tight, Here, said.append)  # and again, from what was read at first


def test_nothing_left_is_said_with_the_rule_that_did_it(whole, tmp_path):
    folder, paths, expected = whole
    recipe = small_recipe(paths, filters={"gopher": {"min_words": 100_000}})
    with refused("corpus/everything-dropped", "gopher.min_words drops 60 of them", "60 documents", "corpus show"):
        make_corpus(recipe, tmp_path / "out", Here, say=quiet)
    assert not (tmp_path / "out/documents").exists()
    assert "gopher.min_words" in as_text(*outcome(tmp_path / "out"))
    shutil.copytree(folder / "out", tmp_path / "before")
    with refused("corpus/everything-dropped", "set filters.gopher.min_words otherwise", "stays as it was") as caught:
        retune(tmp_path / "before", lambda before: recipe, Here, quiet)
    assert "corpus show" not in str(caught.value)  # which tells of what is published still
    assert published(tmp_path / "before") == expected


def test_the_output_of_another_recipe_is_left_alone(whole, tmp_path):
    folder, paths, expected = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    other = small_recipe(paths, filters={"gopher": {"min_words": 60}})
    with refused("corpus/output-of-another", "other fields", "--fresh"):
        make_corpus(other, tmp_path / "out", Here, say=quiet)
    with refused("corpus/output-of-another", "other inputs"):
        make_corpus(small_recipe(paths[:2]), tmp_path / "out", Here, say=quiet)
    assert published(tmp_path / "out") == expected
    make_corpus(other, tmp_path / "out", Here, fresh=True, say=quiet)
    assert published(tmp_path / "out") != expected


def test_a_folder_of_something_else_is_left_alone(whole, tmp_path):
    _, paths, _ = whole
    (tmp_path / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with refused("corpus/output-not-ours", "thesis.tex"):
            make_corpus(small_recipe(paths), tmp_path, Here, fresh, quiet)
    with refused("corpus/output-not-a-folder", "thesis.tex"):
        make_corpus(small_recipe(paths), tmp_path / "thesis.tex", Here, say=quiet)
    assert (tmp_path / "thesis.tex").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mistyped_input_leaves_nothing_in_the_way(whole, tmp_path):
    """Neither files that aren't there nor one that is no WARC make a folder that the right start is refused in."""
    _, paths, expected = whole
    with refused("corpus/input-not-found", "nothing.jsonl"):
        make_corpus(small_recipe([str(tmp_path / "nothing.jsonl")]), tmp_path / "out", Here, say=quiet)
    assert not (tmp_path / "out").exists()
    (tmp_path / "no.warc").write_bytes(b"no page, " * 9)
    with refused("corpus/not-a-warc", "no.warc"):
        make_corpus(small_recipe([str(tmp_path / "no.warc")]), tmp_path / "out", Here, say=quiet)
    make_corpus(small_recipe(paths), tmp_path / "out", Here, say=quiet)
    assert published(tmp_path / "out") == expected


def test_changed_input_is_read_again(tmp_path):
    paths = write_input(tmp_path / "in", 20, 2)
    make_corpus(small_recipe(paths), tmp_path / "out", Here, say=quiet)
    before = published(tmp_path / "out")
    write_rows(tmp_path / "in/part-0.jsonl", [{"text": text("another")}])
    make_corpus(small_recipe(paths), tmp_path / "out", Here, say=quiet)
    assert published(tmp_path / "out") != before
    assert text("another") in {row["text"] for row in rows(tmp_path / "out", "documents")}


def test_input_without_a_document_is_refused(tmp_path):
    empty = write_rows(tmp_path / "empty.jsonl", [])
    with refused("corpus/no-documents"):
        make_corpus(small_recipe([str(empty)]), tmp_path / "out", Here, say=quiet)


def test_why_tells_the_numbers(whole):
    folder, paths, _ = whole
    out, recipe = folder / "out", small_recipe(paths)
    _, told = outcome(out)

    def asked(number):
        return why(out / WORK, recipe, told, f"https://x.example/{number}")

    assert "kept" in asked(0)
    assert "dropped by gopher.min_words: gopher.words is 2 (words: fewer than 50)" in asked(13)
    assert "also breaks gopher.min_stop_words" in asked(13)
    copies = [asked(number) for number in (4, 5)]
    assert sum("it says the same as part-" in one for one in copies) == 1
    with refused("corpus/document-unknown", "https://y.example"):
        why(out / WORK, recipe, told, "https://y.example")


def test_the_funnel_adds_up(whole):
    folder, _, _ = whole
    recipe, told = outcome(folder / "out")
    found = funnel(recipe, told)
    assert [(row.what, row.documents, row.dropped) for row in found] == [
        ("documents read", 60, 0),
        ("texts edited", 60, 0),
        ("gopher", 54, 6),
        ("c4", 54, 0),
        ("copies, word for word", 48, 6),
        ("near-duplicates", 42, 6),
        ("written", 42, 0),
    ]
    assert found[-1].bytes == found[-2].bytes
    given = (json.loads(line)["text"] for one in sorted((folder / "in").iterdir()) for line in one.open())
    assert found[0].bytes == sum(len(one) for one in given) > found[1].bytes  # c4 cuts the lines that are short
    assert sum(one.documents for one in shares(recipe, told)) == 18


def test_files_are_cut_by_documents_alone():
    assert cut([3, 0, 4], 5) == [[Slice(0, 0, 3), Slice(2, 0, 2)], [Slice(2, 2, 4)]]
    assert cut([10], 5) == [[Slice(0, 0, 5)], [Slice(0, 5, 10)]]
    assert cut([], 5) == cut([0], 5) == []


PEAK = """
import json, re, sys
from pathlib import Path
from coretrain.corpus.pipeline.read import read_piece
from coretrain.corpus.readers.open import plan
told, folder = json.loads(sys.argv[1]), Path(sys.argv[3])
piece, = plan([sys.argv[2]], "auto", 2**30)
read_piece({"piece": piece.to_dict(), "reading": told, "learned": []}, [], [folder / name for name in "abcd"])
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.whole
def test_memory_doesnt_grow_with_the_texts_of_a_piece(tmp_path):
    """54 MB more of text in one piece, beyond what fills batches and a group of rows, take less than half of that."""
    peaks, body = [], text("long", 30)
    for count in (3000, 15000):
        path = write_rows(tmp_path / f"{count}.jsonl", [{"text": f"{n} {body}"} for n in range(count)])
        told = small_recipe([str(path)], steps=["page"], rules=[]).reading()
        words = [sys.executable, "-c", PEAK, json.dumps(told), str(path), str(tmp_path)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=True, timeout=120)
        peaks.append(int(done.stdout) * 1024)
    more = (tmp_path / "15000.jsonl").stat().st_size - (tmp_path / "3000.jsonl").stat().st_size
    assert more > 50_000_000
    assert peaks[1] - peaks[0] < more / 2, peaks

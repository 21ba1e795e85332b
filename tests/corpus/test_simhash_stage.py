"""SimHash as a stage of a recipe: what it finds at known distances, and the same bytes however it is carried out."""

import math
import random
from collections import Counter

import pyarrow.parquet as pq
import pytest

from coretrain.corpus.dedup.shingles import Shingling, shingles
from coretrain.corpus.dedup.simhash import SimHash, simhash_duplicates, simhash_part, simhashes
from coretrain.corpus.document import Document
from coretrain.corpus.engine.pool import Pool
from coretrain.corpus.engine.run import Here
from coretrain.corpus.pipeline.corpus import make_corpus, outcome
from coretrain.corpus.report.funnel import funnel, shares
from coretrain.corpus.report.page import write_report
from tests.support.near_documents import edited, kept_ids, text
from tests.support.recipes import published, small_recipe, write_input

PAIRS = 400


def angle(one, two):
    """Between two documents as counts of their word 3-grams."""
    a, b = (Counter(zip(words, words[1:], words[2:], strict=False)) for words in (one.split(), two.split()))
    norms = math.sqrt(sum(n * n for n in a.values()) * sum(n * n for n in b.values()))
    return math.acos(min(1.0, sum(count * b[key] for key, count in a.items()) / norms))


def within(bits, chance, of=64):
    """The chance that at most so many of 64 bits differ, of which each differs with `chance`."""
    return sum(math.comb(of, k) * chance**k * (1 - chance) ** (of - k) for k in range(bits + 1))


@pytest.mark.parametrize(("edits", "distance"), [(1, 3), (2, 3), (4, 3), (4, 6), (12, 8)])
def test_recall_at_known_distances(tmp_path, edits, distance):
    """Of pairs whose angle is known as many are found as Charikar's theorem says: a bit differs by angle / pi."""
    dice, documents, expected = random.Random(edits), [], 0.0
    for number in range(PAIRS):
        one = text(dice, 200)
        two = edited(dice, one, edits)
        documents += [Document(f"{number}", one), Document(f"{number}.near", two)]
        expected += within(distance, angle(one, two) / math.pi) / PAIRS
    form = SimHash(Shingling(3), distance)
    assert simhash_part(documents, tmp_path / "keys", form) == 0
    kept, _ = simhash_duplicates([tmp_path / "keys"], form)
    recall = (len(documents) - len(kept_ids(kept))) / PAIRS
    assert recall == pytest.approx(expected, abs=0.08)  # three spreads of 400 draws
    # all of those that are as near as that, and none besides
    bits = simhashes(shingles([one.text for one in documents], Shingling(3))).tolist()
    near = sum((one ^ two).bit_count() <= distance for one, two in zip(bits[::2], bits[1::2], strict=True))
    assert recall == near / PAIRS


def test_a_recipe_may_have_it_instead_of_minhash(tmp_path):
    paths = write_input(tmp_path / "in")
    made = []
    for name, piece_bytes, engine in (("here", 2**20, Here), ("pool", 2**16, lambda folder: Pool(folder, 2))):
        dedup = {"near": False, "simhash": True, "simhash_distance": 8}
        recipe = small_recipe(paths, dedup=dedup, execution={"piece_bytes": piece_bytes})
        make_corpus(recipe, tmp_path / name, engine, say=lambda line: None)
        made.append(published(tmp_path / name))
    assert made[0] == made[1]
    files = sorted((tmp_path / "here").glob("dropped/*"))
    dropped = [row for path in files for row in pq.read_table(path).to_pylist() if row["rule"] == "simhash"]
    numbers = {int(row["url"].rsplit("/", 1)[1]) for row in dropped}
    assert {number // 10 for number in numbers} == set(range(6))  # one of each two that differ in a line
    assert {number % 10 for number in numbers} <= {6, 7}
    assert len(dropped) == 6
    assert all(row["copy_of"] for row in dropped)
    recipe, told = outcome(tmp_path / "here")
    assert next(one.documents for one in shares(recipe, told) if one.rule == "simhash") == 6
    assert next(one.dropped for one in funnel(recipe, told) if one.what == "near-duplicates, SimHash") == 6
    write_report(tmp_path / "here", tmp_path / "here/work", recipe, told)
    assert "Near-duplicates, by SimHash" in (tmp_path / "here/report.html").read_text(encoding="utf-8")

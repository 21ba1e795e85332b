"""Near-duplicates from documents to what is kept: against plain Python, however the input is cut and ordered."""

from __future__ import annotations

import json
import os
import random
import tracemalloc

import numpy as np
import pytest

from coretrain.corpus.dedup import clusters, pairs, verify
from coretrain.corpus.dedup.bands import candidates, keys_within, ranges, sign_part
from coretrain.corpus.dedup.clusters import clusters_of, components
from coretrain.corpus.dedup.minhash import MinHash, band_keys, sign
from coretrain.corpus.dedup.near import Indexed, index_part
from coretrain.corpus.dedup.pairs import merged, packed, same_key, unpacked
from coretrain.corpus.dedup.parts import Table, content_hash, open_parts, write_keys
from coretrain.corpus.dedup.shingles import Shingling, as_sets, shingles
from coretrain.corpus.dedup.verify import open_sets, similarities, write_shingles
from coretrain.corpus.dedup.words import Ragged
from coretrain.corpus.document import Document
from tests.support.near_documents import (
    cluster_lines,
    edited,
    family,
    jaccard,
    kept_ids,
    pair_of,
    parts_of,
    search,
    text,
)
from tests.support.refusal import refused


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Nothing here must outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Documents with near copies, and what was found among them in one part."""
    documents = family(0, 60, 3)
    folder = tmp_path_factory.mktemp("planted")
    kept, numbers = search(folder / "work", documents)
    return documents, kept, numbers, cluster_lines(kept, folder / "clusters.jsonl")


def test_planted_copies_are_found_and_nothing_else(planted):
    documents, _, numbers, lines = planted
    texts = {one.id: one.text for one in documents}
    found = [json.loads(line) for line in lines.splitlines()]
    for cluster in found:
        assert len({name.split(".")[0] for name in [cluster["kept"], *cluster["dropped"]]}) == 1
    together = {frozenset([one["kept"], *one["dropped"]]) for one in found}
    # one word of 60 changed, twice: similarities from 0.68 to 0.83, and 92% of the latter are found by each pair
    assert len(together) >= 19
    assert numbers["documents"] == len(documents)
    assert numbers["short"] == 0
    assert numbers["clusters"] == len(found)
    assert sum(numbers["removed"].values()) == sum(len(one["dropped"]) for one in found)
    assert numbers["removed_bytes"] == {
        source: sum(
            len(texts[one.id]) for one in documents if one.metadata["source"] == source and one.id in dropped(found)
        )
        for source in ("books", "web", "wiki")
    }
    assert numbers["documents_by_source"] == {
        source: sum(one.metadata["source"] == source for one in documents) for source in ("books", "web", "wiki")
    }


def dropped(found):
    """Ids of all that goes."""
    return {name for one in found for name in one["dropped"]}


def test_clusters_are_those_of_plain_python(planted):
    """All pairs that share a band and reach the threshold, by sets of tuples; then scipy's components."""
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    documents, _, numbers, lines = planted
    keys = band_keys(sign([one.text for one in documents], MinHash())[0], MinHash())
    graph = np.zeros((len(documents), len(documents)), np.int8)
    compared = 0
    for one in range(len(documents)):
        for two in range(one):
            if (keys[:, one] == keys[:, two]).any():
                compared += 1
                graph[one, two] = jaccard(documents[one].text, documents[two].text) >= 0.7
    assert numbers["candidates"] == compared
    assert numbers["verified"] == graph.sum() < compared
    _, labels = csgraph.connected_components(graph, directed=False)
    expected = {
        frozenset(documents[at].id for at in np.flatnonzero(labels == label))
        for label in np.flatnonzero(np.bincount(labels) > 1)
    }
    found = [json.loads(line) for line in lines.splitlines()]
    assert {frozenset([one["kept"], *one["dropped"]]) for one in found} == expected


@pytest.mark.parametrize("parts", [2, 5])
@pytest.mark.parametrize("seed", [1, 2])
def test_how_the_input_is_cut_and_ordered_changes_nothing(planted, tmp_path, parts, seed):
    documents, kept, numbers, lines = planted
    mixed = list(documents)
    random.Random(seed).shuffle(mixed)
    again, counts = search(tmp_path / "work", mixed, parts, memory=8000)
    assert counts == numbers
    assert cluster_lines(again, tmp_path / "clusters.jsonl") == lines
    assert kept_ids(again) == kept_ids(kept)


def test_the_same_input_gives_the_same_files(tmp_path):
    """A batch of texts may be cut anywhere: every file that is written holds the same bytes."""
    from coretrain.corpus.dedup import parts as parts_module

    documents = family(3, 12, 2)
    search(tmp_path / "one", documents, 2)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    before = parts_module.BATCH_CHARACTERS
    try:
        parts_module.BATCH_CHARACTERS = 700
        search(tmp_path / "two", documents, 2)
    finally:
        parts_module.BATCH_CHARACTERS = before
    assert {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()} == whole
    assert len(whole) > 14


def test_the_smallest_is_kept_not_the_first(tmp_path):
    """By the priority of its source, then its text's hash, then its id."""
    draw = random.Random(4)
    original = text(draw, 100)
    near = [edited(draw, original, 1) for _ in range(4)]
    documents = [
        Document("a", near[0], {"source": "web"}),
        Document("b", near[1], {"source": "web"}),
        Document("z", near[2], {"source": "books"}),
        Document("y", near[2], {"source": "books"}),
        Document("d", near[3]),
    ]
    few = MinHash(bands=3, rows=2)
    for seed in range(3):
        mixed = list(documents)
        random.Random(seed).shuffle(mixed)
        kept, _ = search(tmp_path / f"books{seed}", mixed, 1, few, priority=["books", "web"])
        assert kept_ids(kept) == {"y"}
        kept, _ = search(tmp_path / f"web{seed}", mixed, 1, few, priority=["web"])
        smallest = min(documents[:2], key=lambda one: content_hash(one.text.encode()))
        assert kept_ids(kept) == {smallest.id}
        kept, numbers = search(tmp_path / f"none{seed}", mixed, 1, few, priority=["boks"])
        assert kept_ids(kept) == {min(documents, key=lambda one: (content_hash(one.text.encode()), one.id)).id}
        assert any("boks" in line for line in numbers["warnings"])


def test_known_documents_stay_and_their_copies_go(tmp_path):
    documents = family(5, 30, 2)
    old = [one for one in documents if "." not in one.id]
    new = [one for one in documents if "." in one.id] + [Document("fresh", text(random.Random(9), 80))]
    form = MinHash()
    index_part(lambda: iter(old), tmp_path / "keys", tmp_path / "shingles", form)
    kept, numbers = search(tmp_path / "work", new, 2, form, Indexed((tmp_path / "keys",), (tmp_path / "shingles",)))
    everything, _ = search(tmp_path / "all", documents, 1, form)
    assert "fresh" in kept_ids(kept)
    assert numbers["documents"] == len(new)
    assert set(numbers["documents_by_source"]) == {"web", "wiki", "books", "unknown"}
    lines = [json.loads(line) for line in cluster_lines(everything, tmp_path / "x.jsonl").splitlines()]
    for cluster in lines:  # clusters of one original each: with it known, all new ones of them go
        members = {cluster["kept"], *cluster["dropped"]}
        if members & {one.id for one in old}:
            assert not members & kept_ids(kept)


def test_unrelated_books_never_hang_together(tmp_path):
    """Long texts over a small vocabulary share most of their 1-grams and many bands: verification keeps them apart."""
    draw = random.Random(6)
    small = ["the", "of", "and", "king", "said", "house", "old", "went", "day", "night"]
    books = [Document(f"book{n}", " ".join(draw.choices(small, k=3000))) for n in range(8)]
    form = MinHash(Shingling(3), bands=8, rows=1, threshold=0.7)  # 1,000 shingles are possible, each book has most
    kept, numbers = search(tmp_path / "three", books, form=form)
    assert numbers["candidates"] == 28  # all of them are compared
    assert numbers["clusters"] == 1  # and are rightly the same by such shingles
    kept, numbers = search(tmp_path / "five", books, form=MinHash(bands=40, rows=1))
    assert numbers["candidates"] >= 10
    assert numbers["clusters"] == 0
    assert len(kept_ids(kept)) == 8


def test_precision_after_verification(tmp_path):
    """Pairs at known similarity on both sides of the threshold: whatever is dropped reaches it."""
    draw, documents, truth = random.Random(7), [], {}
    for number, (shared, own) in enumerate([(56, 12), (55, 12), (64, 8), (50, 25), (60, 20)] * 40):
        one, two = pair_of(draw, shared, own)
        truth[number] = shared / (shared + 2 * own)
        documents += [Document(f"{number}.0", one), Document(f"{number}.1", two)]
    kept, numbers = search(tmp_path / "work", documents, 3, MinHash(Shingling(1), bands=60, rows=4))
    gone = {one.id for one in documents} - kept_ids(kept)
    assert numbers["candidates"] > 150
    assert {truth[int(name.split(".")[0])] for name in gone} == {0.7, 0.8}  # 0.6962 isn't enough, 0.7 is
    assert len(gone) >= 78


@pytest.mark.parametrize("count", [0, 1, 5, 300])
@pytest.mark.parametrize("at_a_time", [1, 7, 2**20])
def test_components_are_those_of_scipy(count, at_a_time, monkeypatch):
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    from scipy.sparse import coo_array

    monkeypatch.setattr(clusters, "NODES_AT_A_TIME", at_a_time)
    draw = np.random.default_rng(count)
    for edges in (0, count // 3, count, 2 * count):
        left, right = draw.integers(0, max(count, 1), (2, edges))
        parent = components(count, left, right)
        graph = coo_array((np.ones(edges), (left, right)), shape=(count, count))
        if not count:
            continue
        _, labels = csgraph.connected_components(graph, directed=False)
        smallest = np.array([np.flatnonzero(labels == label)[0] for label in labels])
        np.testing.assert_array_equal(parent, smallest)


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(1).permutation(5000)
    nodes, labels = clusters_of(order[:-1] * 10, order[1:] * 10)
    np.testing.assert_array_equal(nodes, np.arange(5000) * 10)
    assert (labels == 0).all()


def test_components_are_computed_in_a_memory_map(tmp_path):
    held = np.memmap(tmp_path / "parents", np.int64, "w+", shape=(6,))
    assert components(6, np.array([5, 1]), np.array([3, 3]), held) is held
    assert held.tolist() == [0, 1, 2, 1, 4, 1]


def test_pairs_are_all_those_of_equal_keys():
    draw = np.random.default_rng(2)
    keys = draw.integers(0, 12, 60).astype(np.uint64)
    numbers = draw.permutation(1000)[:60]
    found, led = same_key(keys, numbers, lambda group: group)
    expected = {
        (min(a, b), max(a, b))
        for i, a in enumerate(numbers.tolist())
        for j, b in enumerate(numbers.tolist())
        if i < j and keys[i] == keys[j]
    }
    assert set(zip(*(one.tolist() for one in unpacked(found)), strict=True)) == expected
    assert led == 0
    assert len(found) == len(expected)


def test_large_groups_are_led_by_the_same_documents_in_any_order(monkeypatch):
    monkeypatch.setattr(pairs, "LARGEST_GROUP", 10)
    monkeypatch.setattr(pairs, "LEADERS", 3)
    numbers = np.arange(11)
    wanted = np.array([5, 3, 9, 1, 0, 2, 4, 6, 7, 8, 10])  # what an order by content may be
    found, led = same_key(np.zeros(11, np.uint64), numbers, lambda group: wanted[group])
    left, right = unpacked(found)
    leaders = {int(np.flatnonzero(wanted == place)[0]) for place in range(3)}
    assert led == 11
    assert len(found) == 10 + 9 + 8
    assert all(leaders & {a, b} for a, b in zip(left.tolist(), right.tolist(), strict=True))
    again, _ = same_key(np.zeros(11, np.uint64), numbers[::-1], lambda group: wanted[group])
    np.testing.assert_array_equal(again, found)


def test_pairs_are_packed_and_merged_once_each():
    one = packed(np.array([3, 2**32 - 1]), np.array([1, 0]))
    assert [part.tolist() for part in unpacked(one)] == [[0, 1], [2**32 - 1, 3]]
    np.testing.assert_array_equal(merged([one, one, one[:1]]), one)
    assert len(merged([])) == 0


def test_every_key_is_in_one_range(tmp_path):
    documents = family(8, 20, 0)
    sign_part(documents, tmp_path / "keys", MinHash())
    parts = open_parts([tmp_path / "keys"], MinHash().described)
    for pieces in (1, 3, 7):
        found = [keys_within(parts, 2, piece, pieces) for piece in range(pieces)]
        np.testing.assert_array_equal(np.sort(np.concatenate([one[1] for one in found])), np.arange(20))
        for piece, (keys, _) in enumerate(found):
            assert all(2**64 * piece <= int(key) * pieces < 2**64 * (piece + 1) for key in keys)
    assert ranges(10, 10**9) == 1
    assert ranges(10**6, 10**7) == 16


@pytest.mark.parametrize("shared", [1, 8])
def test_memory_is_bounded(tmp_path, shared):
    """By the number of ranges: the peak of what one range takes."""
    count, memory = 20_000, 400_000
    table = Table()
    table.add([Document(f"{n}", "x") for n in range(count)])
    keys = np.repeat(np.random.default_rng(0).integers(0, 2**64, count // shared, dtype=np.uint64), shared)[None]
    write_keys(tmp_path / "keys", "so", table, keys, np.arange(count, dtype=np.uint32))
    parts, pieces, pairs_ = open_parts([tmp_path / "keys"], "so"), ranges(count, memory), 0
    assert pieces == 8
    for piece in range(pieces):
        tracemalloc.start()
        pairs_ += len(candidates(parts, 0, piece, pieces)[0])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.2 * memory
    assert pairs_ == count * (shared - 1) // 2


def test_similarities_are_those_of_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "SHINGLES_AT_A_TIME", 200)
    documents = family(9, 12, 2)
    opened, form = parts_of(documents, 3), MinHash()
    for index, one in enumerate(opened):
        sign_part(one(), tmp_path / f"keys{index}", form)
        write_shingles(one(), None, tmp_path / f"sets{index}", form)
    parts = open_parts([tmp_path / f"keys{index}" for index in range(3)], form.described)
    sets = open_sets(parts, [tmp_path / f"sets{index}" for index in range(3)], form)
    left, right = np.triu_indices(len(documents), 1)
    every = packed(left, right)
    left, right = unpacked(every)
    expected = [jaccard(documents[a].text, documents[b].text) for a, b in zip(left, right, strict=True)]
    assert similarities(sets, every).tolist() == expected
    assert len(similarities(sets, every[:0])) == 0


def test_sets_know_no_repeats():
    """ "a b a b a b" has two 2-grams, however often."""
    sets = as_sets(shingles(["a b a b a b", "a b", "b a b"], Shingling(2)))
    assert sets.counts.tolist() == [2, 1, 2]
    shared = verify.common(sets, np.array([0, 0, 1]), np.array([1, 2, 2]))
    assert shared.tolist() == [1, 2, 1]
    assert verify.common(
        Ragged(np.zeros(0, np.uint64), np.zeros(3, np.int64)), np.array([0]), np.array([1])
    ).tolist() == [0]


def test_two_known_documents_are_no_pair(tmp_path):
    documents = [Document(f"{n}", text(random.Random(1), 30)) for n in range(3)]
    sign_part(documents[:2], tmp_path / "old", MinHash())
    sign_part(documents[2:], tmp_path / "new", MinHash())
    parts = open_parts([tmp_path / "new"], MinHash().described, [tmp_path / "old"])
    assert parts.known == 2
    found, _ = candidates(parts, 0, 0, 1)
    assert [one.tolist() for one in unpacked(found)] == [[0, 1], [2, 2]]


def test_an_empty_part_and_an_empty_input_lose_nothing(tmp_path):
    kept, numbers = search(tmp_path / "none", [], 2)
    assert numbers["documents"] == numbers["clusters"] == 0
    assert kept_ids(kept) == set()
    short = [Document("a", "too short"), Document("b", "")]
    kept, numbers = search(tmp_path / "short", short, 4)
    assert numbers["short"] == 2
    assert kept_ids(kept) == {"a", "b"}


def test_a_source_that_loses_more_than_half_is_warned_of(tmp_path):
    draw = random.Random(2)
    original = text(draw, 60)
    documents = [Document(f"{n}", original, {"source": "mirror"}) for n in range(4)]
    documents += [Document(f"x{n}", text(draw, 60), {"source": "web"}) for n in range(4)]
    _, numbers = search(tmp_path / "work", documents)
    assert numbers["removed"] == {"mirror": 3, "web": 0}
    assert numbers["sizes"] == {"4": 1}
    assert len(numbers["warnings"]) == 1
    assert "mirror loses 3 of its 4 documents" in numbers["warnings"][0]
    _, numbers = search(tmp_path / "half", documents[:2] + documents[4:])
    assert numbers["removed"]["mirror"] == 1
    assert numbers["warnings"] == []


def test_files_made_otherwise_are_refused(tmp_path):
    sign_part([], tmp_path / "keys", MinHash())
    with refused("corpus/keys-made-otherwise", str(tmp_path / "keys"), "13 words", "5 words"):
        open_parts([tmp_path / "keys"], MinHash(Shingling(13)).described)
    write_shingles([], None, tmp_path / "sets", MinHash())
    parts = open_parts([tmp_path / "keys"], MinHash().described)
    with refused("corpus/shingles-made-otherwise", str(tmp_path / "sets")):
        open_sets(parts, [tmp_path / "sets"], MinHash(Shingling(4)))


def test_missing_shingles_are_refused(tmp_path):
    documents = family(1, 6, 0)
    sign_part(documents, tmp_path / "keys", MinHash())
    write_shingles(documents, np.array([0, 2]), tmp_path / "sets", MinHash())
    parts = open_parts([tmp_path / "keys"], MinHash().described)
    with refused("corpus/shingles-missing", str(tmp_path / "sets")):
        similarities(open_sets(parts, [tmp_path / "sets"], MinHash()), packed(np.array([0]), np.array([1])))

"""Later data against documents that were kept before."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from coretrain.corpus.dedup.minhash import MinHash
from coretrain.corpus.dedup.near import Indexed, index_part
from coretrain.corpus.dedup.shingles import Shingling
from coretrain.corpus.dedup.verify import _slices
from coretrain.corpus.document import Document
from tests.support.near_documents import cluster_lines, edited, kept_ids, search, text
from tests.support.refusal import refused

FORM = MinHash(Shingling(2), bands=24, rows=1, threshold=0.5)


def known_from(folder, *parts):
    """An index of some parts."""
    names = [(folder / f"keys-{number}", folder / f"sets-{number}") for number in range(len(parts))]
    for (keys, sets), documents in zip(names, parts, strict=True):
        index_part(lambda held=documents: iter(held), keys, sets, FORM)
    return Indexed(tuple(keys for keys, _ in names), tuple(sets for _, sets in names))


def test_pairs_are_verified_in_slices_of_so_many_shingles():
    """What a slice holds is bounded; a pair that alone is larger has one of its own."""
    assert list(_slices(np.array([3, 3, 3, 3, 10, 1, 2]), 6)) == [(0, 2), (2, 4), (4, 5), (5, 7)]
    assert list(_slices(np.array([], np.int64), 6)) == []


def test_several_known_ones_stay_and_are_counted_nowhere(tmp_path):
    """Two indexes may hold near copies of each other; a later copy of both goes, and is said to be of the smallest."""
    draw = random.Random(0)
    original = text(draw, 60)
    old = [Document(f"old{n}", edited(draw, original, 2), {"source": "old"}) for n in range(3)]
    new = [Document(f"new{n}", edited(draw, original, 2), {"source": "web"}) for n in range(2)]
    new.append(Document("other", text(draw, 60), {"source": "web"}))
    known = known_from(tmp_path, old[:1], old[1:])
    for number, order in enumerate((new, new[::-1])):
        kept, numbers = search(tmp_path / f"{number}", order, 2, FORM, known, priority=["web"])
        assert kept_ids(kept) == {"other"}
        assert numbers["removed"] == {"web": 2}
        assert numbers["documents_by_source"] == {"web": 3}
        (line,) = cluster_lines(kept, tmp_path / "clusters").splitlines()
        found = json.loads(line)
        assert found["kept"].startswith("old")
        assert sorted(found["dropped"]) == ["new0", "new1"]
        assert kept.members.tolist() != kept.keepers.tolist()
        assert len(kept.dropped) == 2


def test_known_documents_are_not_compared_with_each_other(tmp_path):
    same = text(random.Random(1), 40)
    known = known_from(tmp_path, [Document("a", same)], [Document("b", same)])
    kept, numbers = search(tmp_path / "work", [Document("c", text(random.Random(2), 40))], 1, FORM, known)
    assert numbers["candidates"] == numbers["clusters"] == 0
    assert kept_ids(kept) == {"c"}


@pytest.mark.parametrize("name", ["keys-0", "sets-0"])
def test_a_damaged_index_is_refused(tmp_path, name):
    known = known_from(tmp_path, [Document("a", text(random.Random(1), 40))])
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
    with refused("corpus/arrays-checksum-wrong", name):
        search(tmp_path / "work", [Document("c", text(random.Random(1), 40))], 1, FORM, known)

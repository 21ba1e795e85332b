"""A batch by itself: its rows and pieces, its padding, and its hash, which logs of earlier runs have too."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from coretrain.data.batch import IGNORED, Batch, batch_hash, stacked, windows
from tests.support.batches import arrays_of, same, with_array

B, T = 5, 7
ROWS = np.random.default_rng(0).integers(0, 300, (B, T + 1), dtype=np.int32)
TEXT = windows(ROWS)
LABELS = np.where(TEXT.labels % 3 == 0, IGNORED, TEXT.labels).astype(np.int32)
POSITIONS = np.tile(np.array([0, 1, 2, 0, 1, 0, 1], np.int32), (B, 1))
PACKED = Batch(TEXT.tokens, LABELS, POSITIONS)
WEIGHTS = np.random.default_rng(1).random((B, T)).astype(np.float32)
WEIGHTED = replace(TEXT, weights=WEIGHTS)
FULL = replace(PACKED, weights=WEIGHTS)
SEGMENTS = np.tile(np.array([0, 0, 0, 1, 1, 2, -1], np.int32), (B, 1))
ALIGNED = replace(PACKED, segments=SEGMENTS).with_planes(share=WEIGHTS[:, :5], reference=WEIGHTS - 1)
KINDS = pytest.mark.parametrize(
    "batch", [TEXT, PACKED, WEIGHTED, FULL, ALIGNED], ids=["text", "packed", "weighted", "full", "aligned"]
)


def digest(*arrays: np.ndarray) -> str:
    """The plain formula: BLAKE2b over the bytes of the arrays, one after another."""
    whole = hashlib.blake2b(digest_size=8, person=b"batch")
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def test_windows_are_inputs_and_what_follows_them():
    assert TEXT.tokens.shape == TEXT.labels.shape == (B, T)
    assert np.array_equal(TEXT.tokens, ROWS[:, :-1])
    assert np.array_equal(TEXT.labels, ROWS[:, 1:])
    assert TEXT.positions is None
    assert TEXT.weights is None
    one = windows(ROWS[2])
    assert one.tokens.shape == (T,)
    assert same(stacked([windows(row) for row in ROWS]), TEXT)
    with pytest.raises(FrozenInstanceError):
        TEXT.tokens = ROWS


@KINDS
def test_rows_are_rows_of_every_array(batch):
    part = batch.rows(slice(1, 4))
    assert len(part) == 3
    assert arrays_of(part).keys() == arrays_of(batch).keys()
    for name, array in arrays_of(part).items():
        assert np.array_equal(array, arrays_of(batch)[name][1:4]), name
    assert same(stacked([batch.map(lambda array, row=row: array[row]) for row in range(B)]), batch)


@KINDS
@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_pieces_come_in_order_and_leave_nothing_out(batch, rows, sizes):
    pieces = list(batch.cut(rows))
    assert [len(piece) for piece in pieces] == sizes
    together = [np.concatenate(arrays) for arrays in zip(*(arrays_of(p).values() for p in pieces), strict=True)]
    assert all(np.array_equal(ours, array) for ours, array in zip(together, arrays_of(batch).values(), strict=True))
    assert sum(piece.targets for piece in pieces) == batch.targets


@KINDS
def test_padding_is_rows_without_a_target(batch):
    before = {name: array.copy() for name, array in arrays_of(batch).items()}
    padded = batch.padded(8)
    assert len(padded) == 8
    assert padded.targets == batch.targets
    assert (padded.labels[B:] == IGNORED).all()
    assert same(padded.rows(slice(B)), batch)
    for name, array in arrays_of(padded).items():
        assert array.dtype == before[name].dtype, name
        assert np.array_equal(arrays_of(batch)[name], before[name]), f"{name} of the batch itself has changed"
        if name == "segments":
            assert (array[B:] == -1).all(), "padding belongs to no sequence"
        elif name != "labels":
            assert not array[B:].any(), name
    assert batch.padded(B) is batch


def test_map_takes_every_array_that_is_there():
    doubled = FULL.map(lambda array: 2 * array)
    assert all(np.array_equal(array, 2 * arrays_of(FULL)[name]) for name, array in arrays_of(doubled).items())
    assert arrays_of(doubled).keys() == {"tokens", "labels", "positions", "weights"}
    seen = []
    assert arrays_of(TEXT.map(lambda array: seen.append(1) or array)).keys() == {"tokens", "labels"}
    assert len(seen) == 2


def test_targets_are_labels_that_are_not_ignored():
    assert TEXT.targets == B * T
    assert PACKED.targets == (LABELS != IGNORED).sum() < B * T
    assert FULL.targets == PACKED.targets, "weights don't change how many there are"


def test_the_hash_is_the_plain_formulas():
    """Of text over int32 [B, T + 1], of packed rows over [B, 3, T]: what earlier runs logged can be compared."""
    assert batch_hash(TEXT) == digest(ROWS.astype("<i4"))
    assert batch_hash(PACKED) == digest(np.stack([PACKED.tokens, PACKED.labels, PACKED.positions], 1).astype("<i4"))
    assert batch_hash(WEIGHTED) == digest(ROWS.astype("<i4"), WEIGHTS.astype("<f4"))
    names = [plane.encode() + ALIGNED.planes[plane].astype("<f4").tobytes() for plane in ("reference", "share")]
    whole = hashlib.blake2b(digest_size=8, person=b"batch")
    for part in (np.stack([PACKED.tokens, PACKED.labels, PACKED.positions], 1).tobytes(), SEGMENTS.tobytes(), *names):
        whole.update(part)
    assert batch_hash(ALIGNED) == whole.hexdigest()
    assert len(batch_hash(TEXT)) == 16


def test_the_hash_is_of_values_not_of_how_they_lie():
    for batch in (TEXT, PACKED, FULL, ALIGNED):
        wide = batch.map(lambda array: array.astype(np.int64) if array.dtype == np.int32 else array.astype(np.float64))
        assert batch_hash(batch.map(np.asfortranarray)) == batch_hash(wide) == batch_hash(batch)


def changed(array: np.ndarray) -> np.ndarray:
    other = array.copy()
    other[3, 2] += 1
    return other


@KINDS
def test_the_hash_shows_every_change(batch):
    hashes = {batch_hash(batch), batch_hash(batch.rows(slice(None, None, -1)))}
    for name, array in arrays_of(batch).items():
        hashes.add(batch_hash(with_array(batch, name, changed(array))))
    assert len(hashes) == 2 + len(arrays_of(batch))


def test_the_hash_tells_kinds_of_batches_apart():
    """Also those with the same ids: positions, weights and an ignored label are content."""
    last = TEXT.labels.copy()
    last[:, -1] = IGNORED
    masked = TEXT.labels.copy()
    masked[0, 0] = IGNORED
    rest = [replace(TEXT, labels=last), replace(TEXT, labels=masked)]
    ones = replace(TEXT, weights=np.ones_like(WEIGHTS))
    assert len({batch_hash(batch) for batch in (TEXT, PACKED, WEIGHTED, FULL, ones, *rest)}) == 7


def test_planes_are_added_in_the_width_that_is_asked():
    assert ALIGNED.planes["share"].dtype == np.float32
    more = ALIGNED.with_planes(True, old=[[0.1] * T] * B, share=np.float16(1) * SEGMENTS)
    assert {name: plane.dtype.name for name, plane in more.planes.items()} == {
        "share": "float64",
        "reference": "float32",
        "old": "float64",
    }
    assert more.planes["old"].shape == (B, T)
    assert np.array_equal(ALIGNED.planes["share"], WEIGHTS[:, :5]), "the batch itself stays"


def test_the_hash_tells_planes_by_their_names():
    one, other = TEXT.with_planes(old=WEIGHTS), TEXT.with_planes(reference=WEIGHTS)
    assert len({batch_hash(batch) for batch in (TEXT, one, other)}) == 3
    assert batch_hash(one.with_planes(share=WEIGHTS)) == batch_hash(TEXT.with_planes(share=WEIGHTS, old=WEIGHTS))

"""Bugs planted in deduplication and decontamination: each is found by a check with known answers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coretrain.base.errors import UserError
from coretrain.corpus.decontaminate import hits, index, step
from coretrain.corpus.dedup import (
    bands,
    clusters,
    exact,
    keep,
    lines,
    minhash,
    near,
    pairs,
    parts,
    shingles,
    simhash,
    substring,
    verify,
    words,
)
from coretrain.corpus.dedup.words import Ragged
from tests.support import dedup_probes
from tests.support.dedup_probes import PROBES

Plant = Callable[[pytest.MonkeyPatch], None]
BUGS: dict[str, tuple[str, Plant]] = {}
"""Name of the bug: the check that finds it, and what plants it."""


def bug(probe: str) -> Callable[[Plant], Plant]:
    """A bug that this check must find."""

    def named(plant: Plant) -> Plant:
        BUGS[plant.__name__] = (probe, plant)
        return plant

    return named


def wrapped(patch: pytest.MonkeyPatch, module: Any, name: str, change: Callable[..., Any]) -> None:
    """Put `change(original, ...)` in place of a function."""
    original = getattr(module, name)
    patch.setattr(module, name, lambda *given, **named: change(original, *given, **named))


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Nothing here must outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("name", list(PROBES))
def test_nothing_is_found_where_no_bug_is(name, tmp_path):
    PROBES[name](tmp_path)


@bug("every_band")
def a_band_is_lost(patch):
    wrapped(patch, near, "tasks", lambda real, form, pieces: [one for one in real(form, pieces) if one[0]])


@bug("every_band")
def the_last_range_of_keys_is_lost(patch):
    wrapped(patch, near, "tasks", lambda real, form, pieces: [one for one in real(form, pieces) if not one[1]])


@bug("every_band")
def keys_are_sorted_without_their_documents(patch):
    def unsorted(real, path, described, table, keys, rows, more={}):  # noqa: B006 - never written to
        real(path, described, table, np.sort(keys, axis=1), rows, more)

    wrapped(patch, bands, "write_keys", unsorted)


@bug("every_band")
def only_neighbours_of_a_band_are_paired(patch):
    patch.setattr(pairs, "LARGEST_GROUP", 1)
    patch.setattr(pairs, "LEADERS", 1)


@bug("recall")
def a_band_forgets_its_last_row(patch):
    def shorter(real, signed, form):
        return real(np.delete(signed, np.s_[form.rows - 1 :: form.rows], 1), replace(form, rows=form.rows - 1))

    wrapped(patch, dedup_probes, "band_keys", shorter)


@bug("recall")
def all_orders_are_the_same(patch):
    def one_order(real, form):
        a, b = real(form)
        return np.full_like(a, a[0]), np.full_like(b, b[0])

    wrapped(patch, minhash, "_orders", one_order)


@bug("recall")
def half_of_the_orders_are_the_same(patch):
    def repeated(real, form):
        return tuple(np.tile(one[: len(one) // 2], 2) for one in real(form))

    wrapped(patch, minhash, "_orders", repeated)


@bug("signature")
def the_largest_is_taken_for_the_smallest(patch):
    patch.setattr(minhash.np, "minimum", np.maximum)


@bug("signature")
def a_block_overwrites_what_was_before(patch):
    patch.setitem(minhash.BLOCK, "fast", 1000)
    real = minhash._place

    def placed(form):
        place = real(form)

        def forgets(block, local, best):
            best[:] = 2**32 - 1
            place(block, local, best)

        return forgets

    patch.setattr(minhash, "_place", placed)


@bug("near_duplicates")
def the_first_seen_is_kept(patch):
    wrapped(patch, keep, "smallest_first", lambda real, parts_, members, groups, _: np.lexsort((members, groups)))


@bug("near_duplicates")
def the_source_priority_is_ignored(patch):
    wrapped(patch, keep, "smallest_first", lambda real, parts_, members, groups, _: real(parts_, members, groups, ()))


@bug("near_duplicates")
def of_equal_texts_the_first_is_kept(patch):
    patch.setattr(keep, "sorted", lambda run, key=None: run if key else sorted(run), raising=False)


@bug("near_duplicates")
def half_of_the_text_hash_decides(patch):
    def halved(real, self, name, numbers):
        found = real(self, name, numbers)
        return found[:, ::-1] if name == "hash" else found

    original = parts.Parts.column
    patch.setattr(parts.Parts, "column", lambda self, name, numbers: halved(original, self, name, numbers))


@bug("near_duplicates")
def ngrams_are_a_word_too_long(patch):
    wrapped(patch, shingles, "ngrams", lambda real, hashes, n: real(hashes, n + 1))


@bug("near_duplicates")
def ngrams_are_a_word_too_short(patch):
    wrapped(patch, shingles, "ngrams", lambda real, hashes, n: real(hashes, n - 1))


@bug("near_duplicates")
def similarity_is_of_multisets(patch):
    def repeats_counted(real, found):
        values = []
        for document in range(len(found.counts)):  # the second, third, ... of a kind is one of its own
            for value, count in sorted(Counter((found.of(document) >> np.uint64(1)).tolist()).items()):
                values += range(value, value + count)
        return Ragged(np.array(values, np.uint64), found.starts)

    wrapped(patch, verify, "as_sets", repeats_counted)


@bug("near_duplicates")
def similarity_is_of_the_smaller_set(patch):
    def contained(real, sets, every):
        left, right = verify.unpacked(every)
        both = sets.sizes(left) + sets.sizes(right)
        ratio = real(sets, every)
        return ratio / (1 + ratio) * both / np.minimum(sets.sizes(left), sets.sizes(right))

    wrapped(patch, verify, "similarities", contained)


@bug("near_duplicates")
def the_threshold_must_be_passed(patch):
    wrapped(patch, near, "verified", lambda real, sets, every, limit: verify.similarities(sets, every) > limit)


@bug("near_duplicates")
def pairs_are_joined_without_verification(patch):
    wrapped(patch, near, "verified", lambda real, sets, every, limit: np.ones(len(every), np.bool_))


@bug("near_duplicates")
def all_of_a_cluster_are_counted_as_removed(patch):
    wrapped(patch, keep, "_by_source", lambda real, parts_, gone: real(parts_, np.arange(len(gone) + 1)))


@bug("near_duplicates")
def the_kept_one_is_dropped_too(patch):
    patch.setattr(keep.Kept, "dropped", property(lambda self: np.sort(self.members)))


@bug("near_duplicates")
def rows_of_later_parts_are_shifted(patch):
    wrapped(patch, near, "wanted", lambda real, *given: [np.maximum(one - 1, 0) for one in real(*given)])


@bug("later_data")
def known_documents_are_dropped(patch):
    patch.setattr(parts.Parts, "known", property(lambda self: 0))


@bug("chains")
def only_the_first_round_joins(patch):
    def once(parent, left, right):
        np.minimum.at(parent, np.maximum(left, right), np.minimum(left, right))

    patch.setattr(clusters, "_join", once)


@bug("chains")
def roots_are_looked_up_one_step_up(patch):
    patch.setattr(clusters, "_roots", lambda parent, nodes: parent[nodes])


@bug("folding")
def case_is_kept(patch):
    wrapped(patch, words, "_fold", lambda real, one: ord(one) if one.isupper() else real(one))


@bug("folding")
def accents_separate_words(patch):
    wrapped(patch, words, "_table", lambda real: np.where(real() == words.DROPPED, 0, real()).astype(np.uint32))


@bug("folding")
def each_digit_counts(patch):
    wrapped(patch, words, "_fold", lambda real, one: ord(one) if one.isdigit() else real(one))


@bug("folding")
def words_are_cut_where_blocks_end(patch):
    patch.setattr(words, "_cut", lambda codes: min(len(codes), 50_003))


@bug("folding")
def ngrams_do_not_know_their_order(patch):
    patch.setattr(words, "_STEP", np.uint64(1))


@bug("equal_documents")
def empty_documents_are_copies(patch):
    wrapped(patch, exact, "folded", lambda real, texts: [one or "nothing" for one in real(texts)])


@bug("equal_documents")
def only_equal_bytes_are_copies(patch):
    patch.setattr(exact, "folded", lambda texts: list(texts))


@bug("repeated_lines")
def the_first_line_seen_is_kept(patch):
    patch.setattr(lines, "ranks", lambda parts_, numbers, priority: numbers)


@bug("repeated_lines")
def lines_keep_their_digits(patch):
    patch.setattr(lines, "_DIGIT", __import__("re").compile("x^"))


@bug("simhashes")
def a_table_is_lost(patch):
    real = simhash.SimHash.masks
    patch.setattr(simhash.SimHash, "masks", lambda self: real(self)[:-1])


@bug("simhashes")
def distance_must_be_less(patch):
    def nearer(real, parts_, form, *given):
        found, led = real(parts_, form, *given)
        left, right = (parts_.column("simhash", side) for side in simhash.unpacked(found))
        return found[np.bitwise_count(left ^ right) < form.distance], led

    wrapped(patch, simhash, "near", nearer)


@bug("simhashes")
def a_bit_of_any_shingle_is_set(patch):
    real = simhash.np.packbits
    patch.setattr(simhash.np, "packbits", lambda votes, **named: real(np.ones_like(votes), **named))


@bug("substrings")
def windows_are_a_byte_too_short(patch):
    wrapped(patch, substring, "hashed", lambda real, texts, form: real(texts, replace(form, n=form.n - 1)))


@bug("substrings")
def the_copy_of_the_wanted_source_is_cut(patch):
    wrapped(patch, substring, "ranks", lambda real, *given: -real(*given))


@bug("substrings")
def what_the_first_copy_needs_is_cut_too(patch):
    def all_copies(real, *given):
        numbers, places, copies = real(*given)
        return numbers[copies], places[copies], copies[copies]

    wrapped(patch, substring, "_windows_of", all_copies)


@bug("benchmarks")
def twelve_words_are_enough(patch):
    real = index.Grams

    patch.setattr(index, "Grams", lambda *given: real(12, 8))


@bug("benchmarks")
def short_items_are_left_out(patch):
    patch.setattr(index, "Grams", lambda real=index.Grams: real(13, 13))


@bug("benchmarks")
def words_are_not_folded_in_documents(patch):
    wrapped(patch, hits, "words", lambda real, texts: real([one.replace(one.upper(), "") for one in texts]))


@bug("benchmarks")
def the_margin_is_cut_on_one_side(patch):
    def one_sided(real, text, found, margin, shortest):
        return real(text, [replace(one, begin=one.begin + margin) for one in found], margin, shortest)

    wrapped(patch, step, "cut", one_sided)


@bug("benchmarks")
def as_many_cuts_as_allowed_drop_a_document(patch):
    def stricter(self):
        return [replace(one, most=one.most - 1) if one.most else one for one in rules(self)]

    rules = step.Decontaminate.rules
    patch.setattr(step.Decontaminate, "rules", stricter)


@bug("benchmarks")
def cuts_are_counted_by_ngram(patch):
    def more(real, text, found, margin, shortest):
        pieces, _ = real(text, found, margin, shortest)
        return pieces, sum(one.ngrams for one in found) + Counter(found).total() - 1

    wrapped(patch, step, "cut", more)


@pytest.mark.parametrize("name", list(BUGS))
def test_a_planted_bug_is_found(name, tmp_path, monkeypatch):
    probe, plant = BUGS[name]
    words._table.cache_clear()
    words._ascii.cache_clear()
    plant(monkeypatch)
    try:
        with pytest.raises((AssertionError, IndexError, ValueError, UserError)):
            PROBES[probe](tmp_path)
    finally:
        monkeypatch.undo()
        words._table.cache_clear()
        words._ascii.cache_clear()


def test_there_are_bugs_for_every_check():
    assert {probe for probe, _ in BUGS.values()} == set(PROBES)
    assert len(BUGS) >= 30

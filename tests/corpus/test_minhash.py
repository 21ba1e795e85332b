"""Words, shingles and signatures against their definitions in plain Python, datasketch, and chances by formula."""

from __future__ import annotations

import hashlib
import random
import unicodedata

import numpy as np
import pytest

from coretrain.corpus.dedup import minhash, words
from coretrain.corpus.dedup.minhash import MinHash, band_keys, chance, chances, datatrove_shingles, sign, signatures
from coretrain.corpus.dedup.shingles import Shingling, as_sets, shingles
from coretrain.corpus.dedup.words import Ragged, folded, ngrams
from tests.support.near_documents import pair_of, text
from tests.support.refusal import refused

ODD = [
    "",
    "!!! \n",
    "One word",
    "H\u00e9llo, WORLD 1234.5 ab12cd345!",
    "Stra\u00dfe don\u2019t so\u00adft \u0130x",
    "\u4f60\u597d abc\u4e16x \u30ab\u30bf",
    "e\u0301 \u0301start \u00e9",
    "\ud800 half \udfff",
    "\u0967\u0968 \u0660\u0661 7",
    "a\nb\tc\u00a0d\u3000e",
]


def test_the_words_of_a_text_are_folded():
    assert folded(ODD) == [
        "",
        "",
        "one word",
        "hello world 0 0 ab0cd0",
        "stra\u00dfe don t soft ix",
        "\u4f60 \u597d abc \u4e16 x \u30ab \u30bf",
        "e start e",
        "half",
        "0 0 0",
        "a b c d e",
    ]


def test_words_are_hashed_alike_wherever_they_stand():
    """In any text, at any place of a batch, in ASCII or not; and no two words of a language alike."""
    found = words.words(["the cat THE  caf\u00e9", "a cat", "cafe"])
    first, second, third = (found.hashes.of(text).tolist() for text in range(3))
    assert first[0] == first[2]
    assert first[1] == second[1]
    assert first[3] == third[0]
    assert len({first[0], first[1], first[3], second[0]}) == 4
    vocabulary = list(dict.fromkeys(folded([" ".join(unicodedata.name(chr(c), "") for c in range(0x3000))])[0].split()))
    assert len(set(words.words([" ".join(vocabulary)]).hashes.values.tolist())) == len(vocabulary) > 2000


def test_places_of_words_are_characters_of_their_text():
    for text_ in ODD:
        found = words.words(["before it", text_, "after"])
        begin, end = found.hashes.starts[1:3]
        spans = zip(found.begins[begin:end].tolist(), found.ends[begin:end].tolist(), strict=True)
        assert " ".join(w for b, e in spans for w in folded([text_[b:e]])) == folded([text_])[0]


@pytest.mark.parametrize("block", [16, 40, 1 << 18])
def test_how_texts_are_cut_into_blocks_changes_nothing(block, monkeypatch):
    monkeypatch.setattr(words, "BLOCK", 1 << 18)
    draw = random.Random(1)
    texts = [*ODD, text(draw, 30), "x" * 100, "\u4e16" * 50, text(draw, 3)]
    whole = words.words(texts)
    monkeypatch.setattr(words, "BLOCK", block)
    cut = words.words(texts)
    for name in ("begins", "ends"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))
    np.testing.assert_array_equal(cut.hashes.values, whole.hashes.values)
    np.testing.assert_array_equal(cut.hashes.starts, whole.hashes.starts)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 50])
def test_ngrams_are_equal_exactly_where_their_words_are(n):
    draw = random.Random(n)
    texts = [" ".join(draw.choices("abc", k=k)) for k in (0, 1, 2, n - 1, n, n + 1, 60)]
    found = shingles(texts, Shingling(n))
    seen: dict[tuple[str, ...], set[int]] = {}
    for number, one in enumerate(texts):
        parts = one.split()
        mine = [tuple(parts[k : k + n]) for k in range(len(parts) - n + 1)]
        assert found.counts[number] == len(mine)
        for gram, value in zip(mine, found.of(number).tolist(), strict=True):
            seen.setdefault(gram, set()).add(value)
    assert all(len(values) == 1 for values in seen.values())
    assert len({value for values in seen.values() for value in values}) == len(seen) > 1


def test_ngrams_know_the_order_of_their_words():
    one, two = (shingles([words_], Shingling(3)).values[0] for words_ in ("a b c", "b a c"))
    assert one != two


def test_characters_are_those_of_words():
    one = shingles(["Ab, c1 23\u00e9"], Shingling(3, "character"))
    two = shingles(["abc 0 0e"], Shingling(3, "character"))
    assert len(one.values) == 4  # abc bc0 c00 00e
    np.testing.assert_array_equal(one.values, two.values)


def test_a_set_has_each_shingle_once_and_sorted():
    found = as_sets(Ragged(np.array([10, 2, 11, 10, 4, 2], np.uint64), np.array([0, 3, 3, 6])))
    assert found.values.tolist() == [1, 5, 1, 2, 5]  # without their last bit
    assert found.starts.tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize("block", [1, 7, 100, 16384])
def test_a_signature_is_the_smallest_in_each_order(block, monkeypatch):
    """By its definition, with Python's own integers; blocks that cut documents change nothing."""
    monkeypatch.setitem(minhash.BLOCK, "fast", block)
    draw = np.random.default_rng(0)
    counts = [3, 0, 1, 250, 0, 0, 40, 0]
    found = Ragged(draw.integers(0, 2**64, sum(counts), dtype=np.uint64), np.cumsum([0, *counts]))
    form = MinHash(bands=3, rows=2)
    a, b = (one.tolist() for one in minhash._orders(form))
    signed = signatures(found, form)
    assert signed.dtype == np.uint32
    for document in range(len(counts)):
        expected = [
            min((((value >> 32) * x + y) % 2**32 for value in found.of(document).tolist()), default=2**32 - 1)
            for x, y in zip(a, b, strict=True)
        ]
        assert signed[document].tolist() == expected


def test_orders_are_all_different_and_permutations():
    a, b = minhash._orders(MinHash())
    assert len(set(a.tolist())) == len(set(b.tolist())) == 112
    assert (a % 2 == 1).all()  # odd: one to one
    assert minhash._orders(MinHash(seed=2))[0].tolist() != a.tolist()


@pytest.mark.parametrize("hashed", ["xxhash64", "sha1"])
def test_datatrove_counting_is_its_arithmetic(hashed):
    """(h a + b) mod 2^64, then mod 2^61 - 1, by Python's integers; the factors are those of its generator."""
    xxhash = pytest.importorskip("xxhash")
    documents = [text(random.Random(n), n).split() for n in (4, 5, 6, 30)]
    form = MinHash(bands=2, rows=3, counting="datatrove")
    signed = signatures(datatrove_shingles(documents, 5, hashed), form)
    assert signed.dtype == np.uint64
    draw = np.random.RandomState(1)
    a = draw.randint(1, 2**61 - 1, dtype=np.uint64, size=(1, 6))[0].tolist()
    b = draw.randint(0, 2**61 - 1, dtype=np.uint64, size=(1, 6))[0].tolist()
    for row, document in zip(signed.tolist(), documents, strict=True):
        grams = [" ".join(document[k : k + 5]).encode() for k in range(len(document) - 4)]
        if hashed == "sha1":
            values = [int.from_bytes(hashlib.sha1(gram).digest()[:8], "little") for gram in grams]
        else:
            values = [xxhash.xxh64(gram).intdigest() for gram in grams]
        best = [
            min(((h * x + y) % 2**64 % (2**61 - 1) for h in values), default=2**64 - 1)
            for x, y in zip(a, b, strict=False)
        ]
        assert row == best


@pytest.mark.parametrize(
    ("hashed", "first", "seal"),
    [
        ("xxhash64", [85330943174081874, 663359892825767826, 302227827184868053], "c984adad5e42f6a5"),
        ("sha1", [585594454516184072, 248469680858563057, 432853335805547253], "3e5295b422e505bc"),
    ],
)
def test_signatures_are_those_of_datatrove(hashed, first, seal):
    """Recorded from `MinhashDedupSignature` of datatrove 0.10.1, whose words were those between blanks."""
    pytest.importorskip("xxhash")
    sentence = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "away"]
    signed = signatures(datatrove_shingles([sentence], 5, hashed), MinHash(counting="datatrove"))[0]
    assert signed[:3].tolist() == first
    assert hashlib.sha256(signed.astype("<u8").tobytes()).hexdigest()[:16] == seal


def test_short_texts_have_no_signature():
    signed, some = sign(["a b c d", "a b c d e", "", "!"], MinHash())
    assert some.tolist() == [False, True, False, False]
    assert (signed[[0, 2, 3]] == 2**32 - 1).all()


def test_a_band_has_one_key_for_equal_rows():
    form = MinHash(bands=2, rows=3)
    signed = np.array([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 3, 2, 4, 5, 6]], np.uint32)
    keys = band_keys(signed, form)
    assert keys.shape == (2, 3)
    assert keys[0, 0] == keys[0, 1] != keys[0, 2]  # the order of rows counts
    assert keys[1, 0] == keys[1, 2] != keys[1, 1]


def test_keys_stay_what_indexes_of_earlier_corpora_hold():
    """An index that was kept is compared with later data: the arithmetic of its keys can't change unseen."""
    form = MinHash(bands=2, rows=2)
    keys = band_keys(sign(["one two three four five six seven"], form)[0], form)
    assert keys[:, 0].tolist() == [0x9525E52FA5FB6E4D, 0xFF742A244FBF271E]


@pytest.mark.parametrize(
    "other",
    [{"seed": 2}, {"bands": 7}, {"rows": 4}, {"counting": "datatrove"}, {"shingling": Shingling(4)}],
    ids=str,
)
def test_signatures_of_other_fields_are_never_compared(other):
    assert MinHash(**other).described != MinHash().described


def test_signatures_agree_as_often_as_sets_do():
    """The mean of agreement over pairs is their Jaccard similarity; datasketch's estimate is as near."""
    datasketch = pytest.importorskip("datasketch")
    draw = random.Random(3)
    form = MinHash(Shingling(1))
    for shared, own in ((60, 20), (90, 5), (40, 40)):
        pairs = [pair_of(draw, shared, own) for _ in range(60)]
        truth = shared / (shared + 2 * own)
        signed, _ = sign([one for pair in pairs for one in pair], form)
        ours = (signed[0::2] == signed[1::2]).mean(axis=1)
        # 112 trials a pair, 60 pairs: a standard error of at most 0.5 / sqrt(6720) = 0.006
        assert abs(ours.mean() - truth) < 0.025
        assert abs(ours.std() - np.sqrt(truth * (1 - truth) / 112)) < 0.015  # orders are as good as independent
        other = []
        for pair in pairs[:15]:
            sketches = [datasketch.MinHash(num_perm=112), datasketch.MinHash(num_perm=112)]
            for sketch, one in zip(sketches, pair, strict=True):
                sketch.update_batch([word.encode() for word in one.split()])
            other.append(sketches[0].jaccard(sketches[1]))
        assert abs(np.mean(other) - ours.mean()) < 0.05


def test_the_chance_of_a_pair_is_the_formula():
    assert chance(0.8, 14, 8) == pytest.approx(1 - (1 - 0.8**8) ** 14)
    table = {(0.7, 14, 8): 0.565, (0.8, 14, 8): 0.924, (0.8, 9, 13): 0.399, (0.7, 450, 20): 0.302, (0.9, 20, 13): 0.997}
    for (similarity, bands, rows), expected in table.items():
        assert chance(similarity, bands, rows) == pytest.approx(expected, abs=6e-4)
    assert "56.5% at 0.7, 92.4% at 0.8" in chances(MinHash())


@pytest.mark.parametrize(("shared", "own"), [(50, 25), (60, 20), (56, 12), (64, 8), (72, 4), (76, 2)])
def test_pairs_are_found_as_often_as_the_formula_says(shared, own):
    """4,000 pairs at each of six similarities from 0.5 to 0.95: one standard error is 0.008 at most."""
    draw, form, count = np.random.default_rng(own), MinHash(), 4000
    both = draw.integers(0, 2**64, (count, shared), dtype=np.uint64)
    sides = [np.hstack([both, draw.integers(0, 2**64, (count, own), dtype=np.uint64)]) for _ in range(2)]
    starts = np.arange(count + 1) * (shared + own)
    one, two = (band_keys(signatures(Ragged(side.reshape(-1), starts), form), form) for side in sides)
    assert abs((one == two).any(axis=0).mean() - chance(shared / (shared + 2 * own), 14, 8)) < 0.02


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("corpus/minhash-number", {"bands": 0}),
        ("corpus/minhash-number", {"rows": 1001}),
        ("corpus/minhash-seed", {"seed": -1}),
        ("corpus/minhash-threshold", {"threshold": 0.0}),
        ("corpus/minhash-threshold", {"threshold": float("nan")}),
        ("corpus/minhash-counting-unknown", {"counting": "datatrov"}),
    ],
)
def test_fields_that_make_no_sense_are_refused(code, values):
    name, value = next(iter(values.items()))
    with refused(code, f"dedup.{name}", str(value)):
        MinHash(**values)


def test_shinglings_that_make_no_sense_are_refused():
    with refused("corpus/shingle-unit-unknown", "did you mean word?", "dedup.unit = words"):
        Shingling(5, "words")
    with refused("corpus/shingle-length", "dedup.n = 0"):
        Shingling(0)


def test_ngrams_of_nothing_are_none():
    none = ngrams(Ragged(np.zeros(0, np.uint64), np.zeros(1, np.int64)), 5)
    assert len(none.values) == 0
    assert none.starts.tolist() == [0]
    assert sign([], MinHash())[0].shape == (0, 112)

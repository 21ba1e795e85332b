"""The n-gram model: by hand, against plain Python, through ARPA, and that all its probabilities add up to one."""

from __future__ import annotations

import itertools
import math
import random
import sys
import types

import numpy as np
import pytest

from coretrain.corpus.document import Batch, Document
from coretrain.corpus.perplexity import step as step_module
from coretrain.corpus.perplexity.arpa import save_arpa
from coretrain.corpus.perplexity.lines import Lines, normalized
from coretrain.corpus.perplexity.model import Model, buckets, cuts, load
from coretrain.corpus.perplexity.step import Perplexity
from coretrain.corpus.perplexity.train import discounts, train
from coretrain.corpus.text.texts import Texts
from tests.support.plain_kneser_ney import PlainModel, read_arpa, score_by_arpa
from tests.support.refusal import refused

DRAWN = "the a cat dog sat ran on mat , . of it"
FEW = ["a b a\nb a\na b c\n", "", "a a b\n\nc\n"]


def drawn(seed: int, lines: int) -> list[str]:
    draw = random.Random(seed)
    words = DRAWN.split(" ")
    weights = [1 / (rank + 1) for rank in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=draw.randint(1, 12))) for _ in range(lines)]


def log10(model: Model, text: str) -> float:
    """log10 of a text's probability."""
    lines = [line for line in text.split("\n") if line.strip()]
    words = sum(len(Texts([normalized(line)]).words.starts) + 1 for line in lines)
    return -math.log10(model.perplexities([text])[0]) * words


@pytest.fixture(scope="module")
def few():
    return train(FEW, 3)


def test_probabilities_by_hand(few, tmp_path):
    save_arpa(few, tmp_path / "few.arpa")
    grams = read_arpa((tmp_path / "few.arpa").read_text())
    # different words before a: <s> b a; before b: a <s>; c: b <s>; </s>: a b c. 10 in all; too few texts for discounts,
    # so 0.5, 1 and 1.5 are taken: 5 of 10 go to the five words that can come, <unk> among them
    expected = {"a": 0.15 + 0.1, "b": 0.1 + 0.1, "c": 0.1 + 0.1, "</s>": 0.15 + 0.1, "<unk>": 0.1}
    assert {word: 10 ** grams[(word,)][0] for word in expected} == pytest.approx(expected)
    # after "a b" come a, c, </s>, once each: 0.5 of each 3 are left; "b a" and others give the rest
    b_a = (
        2 - 1
    ) / 4 + 2 / 4 * 0.25  # before "b a": a and <s>; before "b c": a; before "b </s>": a; 1 + 0.5 + 0.5 taken
    assert 10 ** grams["b", "a"][0] == pytest.approx(b_a)
    assert 10 ** grams["a", "b", "a"][0] == pytest.approx(0.5 / 3 + 1.5 / 3 * b_a)
    assert grams[("<s>",)][0] == -99


def test_perplexity_counts_the_ends_of_lines(few, tmp_path):
    save_arpa(few, tmp_path / "few.arpa")
    grams = read_arpa((tmp_path / "few.arpa").read_text())
    total = score_by_arpa(grams, ["a", "b", "c"]) + score_by_arpa(grams, ["zebra"])
    found = few.perplexities(["A b\tc\n\n  \nzebra", "", "\n"])
    assert found[0] == pytest.approx(10 ** (-total / (4 + 2)), rel=1e-5)
    assert np.isnan(found[1:]).all()


@pytest.mark.parametrize(("order", "lines"), [(1, 30), (2, 200), (3, 60), (5, 40), (3, 1500)])
def test_as_plain_python(order, lines, tmp_path):
    texts = drawn(order, lines)
    model = train(["\n".join(texts[:7]), *texts[7:]], order)
    plain = PlainModel([text.split() for text in texts], order)
    save_arpa(model, tmp_path / "model.arpa")
    grams = read_arpa((tmp_path / "model.arpa").read_text())
    asked = random.Random(1).sample(sorted(grams), min(len(grams), 60))
    for gram in asked:
        if gram != ("<s>",):
            assert 10 ** grams[gram][0] == pytest.approx(plain.probability(gram[-1], gram[:-1]), rel=1e-5), gram
    unseen = [*drawn(99, 6), "the zebra sat", "mat mat mat"]
    for text in unseen:
        words = [word if word in plain.vocabulary else "<unk>" for word in text.split()]
        chain = ["<s>", *words, "</s>"]
        expected = sum(
            math.log10(plain.probability(chain[at], tuple(chain[max(0, at - order + 1) : at])))
            for at in range(1, len(chain))
        )
        assert log10(model, text) == pytest.approx(expected, rel=1e-5)
        assert log10(model, text) == pytest.approx(score_by_arpa(grams, text.split()), rel=1e-5)


def test_probabilities_after_any_context_add_up_to_one():
    texts = drawn(4, 300)
    model = train(texts, 3)
    vocabulary = [*model.words, "</s>", "zebra"]
    plain = PlainModel([text.split() for text in texts], 3)
    for context in [(), ("the",), ("<s>",), ("the", "cat"), ("<s>", "dog"), ("mat", "it"), ("zebra", "the")]:
        total = sum(plain.probability(word if word != "zebra" else "<unk>", context) for word in vocabulary)
        assert total == pytest.approx(1)
    size = len(model.tables[0].keys)
    for ids in itertools.islice(itertools.product(range(3, size), repeat=2), 40):
        lines = [(*ids, word) for word in [0, 2, *range(3, size)]]
        scores = [_last(model, line) for line in lines]
        assert sum(10**score for score in scores) == pytest.approx(1, rel=1e-4)


def _last(model: Model, line: tuple[int, ...]) -> float:
    ids = np.array([1, *line], np.int64)
    return float(model.score(Lines(ids, np.array([0]), np.array([0])))[-1])


def test_discounts_are_chen_and_goodmans():
    counts = np.array([1] * 10 + [2] * 4 + [3] * 2 + [4] * 1 + [9])
    y = 10 / (10 + 8)
    expected = (1 - 2 * y * 4 / 10, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2)
    assert discounts(counts) == pytest.approx(expected)
    assert discounts(np.array([1, 1, 2])) == (0.5, 1.0, 1.5)


def test_the_order_of_texts_and_blocks_change_no_bit(monkeypatch, tmp_path):
    texts = drawn(5, 50)
    first = train(texts, 4).save(tmp_path / "a.npz")
    assert train(texts[::-1], 4).save(tmp_path / "b.npz") == first
    monkeypatch.setattr("coretrain.corpus.text.texts.BLOCK", 100)
    assert train(["\n".join(texts)], 4).save(tmp_path / "c.npz") == first
    model = load(tmp_path / "a.npz")
    assert model.perplexities(texts).tolist() == train(texts, 4).perplexities(texts).tolist()


def test_a_text_is_scored_alike_alone_and_among_others(few):
    texts = [*drawn(6, 20), "", "a\n\nb c", "c"]
    together = few.perplexities(texts)
    np.testing.assert_array_equal(together, [few.perplexities([text])[0] for text in texts])


def test_digits_and_case_are_one():
    model = train(["In 1984 it rained ."], 2)
    assert model.perplexities(["in 2025 It Rained ."])[0] == model.perplexities(["In 1984 it rained ."])[0]
    assert model.perplexities(["in 20 it rained ."])[0] > model.perplexities(["In 1984 it rained ."])[0]


def test_like_text_is_less_surprising():
    model = train(drawn(7, 400))
    like, shuffled = drawn(8, 20), [" ".join(random.Random(1).choices(model.words, k=8)) for _ in range(20)]
    assert np.median(model.perplexities(like)) < np.median(model.perplexities(shuffled))
    assert model.perplexities(["wholly other words"])[0] > max(model.perplexities(like))


def test_buckets_are_cut_at_percentiles():
    values = np.array([float(number) for number in range(101)] + [np.nan])
    limits = cuts(values)
    assert limits.tolist() == [30, 60]
    assert buckets(np.array([0, 30, 30.5, 60, 61, np.nan]), limits).tolist() == [0, 0, 1, 1, 2, -1]
    assert np.isnan(cuts(np.array([np.nan]))).all()


def test_the_step_scores_by_a_saved_model(few, tmp_path):
    few.save(tmp_path / "few.npz")
    found = Perplexity(str(tmp_path / "few.npz")).run(Batch([Document("a", "a b c"), Document("b", "")]))
    np.testing.assert_array_equal(found.signals["perplexity.value"], few.perplexities(["a b c", ""]))


def test_models_for_kenlm_go_through_its_reader(few, tmp_path, monkeypatch):
    path = tmp_path / "few.arpa"
    save_arpa(few, path)
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with refused("corpus/kenlm-missing", "few.arpa", "pip install kenlm"):
        Perplexity(str(path)).run(Batch([]))
    grams = read_arpa(path.read_text())

    class Reader:
        def __init__(self, name: str) -> None:
            if name != str(path):
                raise OSError

        def score(self, text: str, bos: bool, eos: bool) -> float:
            assert bos
            assert eos
            return score_by_arpa(grams, text.split(" "))

    monkeypatch.setitem(sys.modules, "kenlm", types.SimpleNamespace(Model=Reader))
    texts = [*drawn(9, 10), "A b.\n\nc 12", ""]
    found = Perplexity(str(path)).run(Batch([Document(str(at), text) for at, text in enumerate(texts)]))
    np.testing.assert_allclose(found.signals["perplexity.value"], few.perplexities(texts), rtol=1e-5)
    with refused("corpus/kenlm-model-unreadable", "other.arpa"):
        Perplexity(str(tmp_path / "other.arpa")).run(Batch([]))
    step_module._scorer.cache_clear()


def test_what_cannot_be_read_or_trained_is_refused(tmp_path):
    with refused("corpus/perplexity-model-not-named", "perplexity.model"):
        Perplexity("").run(Batch([]))
    with refused("corpus/perplexity-model-missing", "none.npz"):
        load(tmp_path / "none.npz")
    (tmp_path / "other.npz").write_bytes(b"no model")
    with refused("corpus/perplexity-model-damaged", "other.npz"):
        load(tmp_path / "other.npz")
    with refused("corpus/perplexity-no-words"):
        train(["", "\n"])


def test_a_damaged_model_is_refused_and_never_half_read(few, tmp_path):
    path = tmp_path / "few.npz"
    few.save(path)
    whole = path.read_bytes()
    draw = random.Random(2)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        _same_or_refused(path, bytes(damaged), few)
    for length in draw.sample(range(len(whole)), 40):
        _same_or_refused(path, whole[:length], few)


def _same_or_refused(path, content: bytes, model: Model) -> None:
    path.write_bytes(content)
    try:
        with refused("corpus/perplexity-model-damaged", "few.npz"):
            load(path)
    except pytest.fail.Exception:  # bits that nobody reads, such as a date
        assert load(path).perplexities(["a b c"])[0] == model.perplexities(["a b c"])[0]

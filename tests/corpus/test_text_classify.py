"""The classifier of good and bad texts: its features by hand, its minimum by another way, its files."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import check_grad, minimize

from coretrain.corpus.classify.features import features
from coretrain.corpus.classify.model import Classifier, load, threshold_for, train
from coretrain.corpus.classify.step import Quality
from coretrain.corpus.document import Batch, Document
from coretrain.corpus.text.hashes import hashes_of, mixed
from tests.support.refusal import refused

GOOD = ["The model of the world is tested with care.", "We measured the error twice and explain it here.", "Why? See."]
BAD = ["BUY NOW!!! cheap cheap cheap", "click here to win 1000 dollars now", "best best offer click"]


def examples(seed: int, count: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    kinds = []
    for line in ("model error world measure proof explain the of", "buy click cheap offer win now the of"):
        words = line.split(" ")
        kinds.append([" ".join(draw.choices(words, k=draw.randint(3, 15))) for _ in range(count)])
    return kinds[0], kinds[1]


def test_features_by_hand():
    matrix = features(["Cat cat 12 cat", "", "x"], 16).toarray()
    names = ("cat", "00", "x")
    word = dict(zip(names, hashes_of(names).tolist(), strict=True))
    hashes = word | {
        f"{a} {b}": (word[a] * 0xD6E8FEB86659FD93 + word[b]) % 2**64
        for a, b in (("cat", "cat"), ("cat", "00"), ("00", "cat"))
    }
    column = {name: int(mixed(np.array([value], np.uint64))[0]) >> 48 for name, value in hashes.items()}
    values = {
        "cat": math.log(4),
        "00": math.log(2),
        "cat cat": math.log(2),
        "cat 00": math.log(2),
        "00 cat": math.log(2),
    }
    length = math.sqrt(sum(value**2 for value in values.values()))
    expected = np.zeros((3, 2**16))
    for name, value in values.items():
        expected[0, column[name]] = value / length
    expected[2, column["x"]] = 1
    np.testing.assert_allclose(matrix, expected, rtol=1e-12)


def test_a_text_has_the_same_features_alone_and_in_other_blocks(monkeypatch):
    texts = [*examples(1, 10)[0], "", "a", "b b b"]
    together = features(texts, 12).toarray()
    monkeypatch.setattr("coretrain.corpus.text.texts.BLOCK", 30)
    np.testing.assert_array_equal(features(texts, 12).toarray(), together)
    np.testing.assert_array_equal(np.vstack([features([text], 12).toarray() for text in texts]), together)
    assert features([], 12).shape == (0, 4096)


def test_good_and_bad_are_told_apart_and_both_kinds_weigh_the_same():
    good, bad = examples(2, 60)
    model = train(good[:40], bad[:40], bits=12)
    assert min(model.scores(good[40:])) > 0.5 > max(model.scores(bad[40:]))
    assert model.scores([""])[0] == pytest.approx(1 / (1 + math.exp(-model.bias)), abs=1e-6)
    more = train(good[:40] * 3, bad[:40], bits=12)
    np.testing.assert_allclose(more.scores(good), model.scores(good), atol=2e-3)


def test_the_minimum_is_that_of_another_method():
    good, bad = examples(3, 8)
    bits, decay = 8, 0.01
    matrix = features(sorted(good), bits).toarray(), features(sorted(bad), bits).toarray()

    def slope(point):
        slopes = [-sign * 0.5 / len(one) / (1 + np.exp(sign * (one @ point[:-1] + point[-1]))) for one, sign in kinds]
        weights = sum(one.T @ each for (one, _), each in zip(kinds, slopes, strict=True)) + decay * point[:-1]
        return np.append(weights, sum(each.sum() for each in slopes))

    def loss(point):
        margins = [matrix[0] @ point[:-1] + point[-1], -(matrix[1] @ point[:-1] + point[-1])]
        return 0.5 * sum(np.logaddexp(0, -one).mean() for one in margins) + 0.5 * decay * point[:-1] @ point[:-1]

    kinds = [(matrix[0], 1), (matrix[1], -1)]
    model = train(good, bad, bits, decay)
    ours = np.append(model.weights, model.bias)
    theirs = minimize(loss, np.zeros(2**bits + 1), jac=slope, method="BFGS", options={"gtol": 1e-8})
    assert loss(ours) == pytest.approx(theirs.fun, rel=1e-5)
    np.testing.assert_allclose(ours, theirs.x, atol=5e-3)
    assert check_grad(loss, slope, ours) < 1e-5
    assert np.abs(slope(ours)).max() < 1e-4  # it is flat there


def test_order_of_examples_changes_no_bit(tmp_path):
    good, bad = examples(4, 20)
    first = train(good, bad, bits=12).save(tmp_path / "a.npz")
    assert train(good[::-1], bad[::-1], bits=12).save(tmp_path / "b.npz") == first


def test_only_the_beginning_is_looked_at_where_asked():
    good, bad = examples(5, 20)
    model = train(good, bad, bits=12, characters=20)
    text = good[0][:20].ljust(20)
    assert model.scores([text])[0] == model.scores([text + " click buy"])[0]
    whole = Classifier(model.weights, model.bias, 0)
    assert whole.scores([text])[0] > whole.scores([text + " click buy"])[0]


def test_a_saved_classifier_scores_the_same_through_the_step(tmp_path):
    model = train(GOOD, BAD, bits=10)
    path = tmp_path / "quality.npz"
    model.save(path)
    found = Quality(str(path)).run(Batch([Document(str(at), text) for at, text in enumerate(GOOD + BAD)]))
    assert found.signals["quality.score"].tolist() == model.scores(GOOD + BAD).tolist()
    assert (found.signals["quality.score"] > 0.5).tolist() == [True] * 3 + [False] * 3


def test_a_threshold_keeps_the_fraction_asked_for():
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, np.nan])
    for fraction, kept in ((0.1, 1), (0.2, 2), (0.5, 5), (1.0, 10)):
        assert (scores >= threshold_for(scores, fraction)).sum() == kept
    assert math.isnan(threshold_for(np.array([np.nan]), 0.5))


def test_what_cannot_be_read_or_trained_is_refused(tmp_path):
    with refused("corpus/classifier-not-named", "quality.model"):
        Quality("").run(Batch([]))
    with refused("corpus/classifier-missing", "none.npz"):
        load(tmp_path / "none.npz")
    with refused("corpus/classifier-no-examples", "bad"):
        train(GOOD, ["", "\n"])
    with refused("corpus/classifier-no-examples", "good"):
        train([], BAD)


def test_a_damaged_classifier_is_refused(tmp_path):
    path = tmp_path / "quality.npz"
    model = train(GOOD, BAD, bits=8)
    model.save(path)
    whole = path.read_bytes()
    draw = random.Random(3)
    for at in draw.sample(range(len(whole)), 100):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            with refused("corpus/classifier-damaged", "quality.npz"):
                load(path)
        except pytest.fail.Exception:  # bits that nobody reads, such as a date
            assert load(path).scores(GOOD).tolist() == model.scores(GOOD).tolist()
    path.write_bytes(b"")
    with refused("corpus/classifier-damaged", "quality.npz"):
        load(path)

"""Our models as lm-evaluation-harness calls them; of its package a stand-in has the one class that we take."""

from __future__ import annotations

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from coretrain.base.errors import UserError
from coretrain.evaluation import harness
from tests.support.evaluation_probes import Bigrams, byte_tokenizer, scorer


def asked(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.fixture
def stack():
    return Bigrams()


@pytest.fixture
def model(stack, monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lm_eval.api.model"].LM = object
    monkeypatch.setattr(harness, "installed", lambda: True)
    return harness.harness_model(scorer(stack, context=16), byte_tokenizer(), 16)


def test_without_its_package(monkeypatch):
    monkeypatch.setattr(harness, "installed", lambda: False)
    with pytest.raises(UserError, match="lm-eval is not installed"):
        harness.harness_model(scorer(), byte_tokenizer(), 64)


def test_likelihoods(model, stack):
    """Sums of what follows, and whether it is the likeliest."""
    best = chr(int(stack.table[ord("b"), :128].argmax()))
    likeliest = bool(stack.table[ord("b")].argmax() == ord(best))
    found = model.loglikelihood([asked("ab", "cd"), asked("", "x"), asked("b", best)])
    expected = [stack.of(b"bcd"), stack.of([256, ord("x")]), stack.of([ord("b"), ord(best)])]
    assert [one for one, _ in found] == pytest.approx(expected, abs=1e-9)
    assert found[2][1] is likeliest


def test_rolling_likelihoods(model, stack):
    """Of a text longer than the context, every id once: a table of pairs needs no more than the id before."""
    texts = ["abc", "the quick brown fox jumps over it"]
    found = model.loglikelihood_rolling([asked(text) for text in texts])
    assert found == pytest.approx([stack.of([256, *text.encode()]) for text in texts], abs=1e-9)


@pytest.mark.parametrize("name", harness.LIMITS)
def test_answers(model, stack, name):
    """As many tokens as the task says, by any of its words; up to its ends."""
    (said,) = model.generate_until([asked("ab", {name: 3})])
    ids, last = [], ord("b")
    for _ in range(3):
        last = int(stack.table[last].argmax())
        ids.append(last)
    whole = byte_tokenizer().decode(ids)
    assert said == whole
    (cut,) = model.generate_until([asked("ab", {name: 3, "until": [whole[-1]]})])
    assert cut == whole[: whole.index(whole[-1])]


def test_answers_that_are_to_be_drawn(model):
    with pytest.raises(UserError, match="drawn at random"):
        model.generate_until([asked("a", {"do_sample": True, "temperature": 0.7})])
    assert math.isfinite(len(model.generate_until([asked("a", {"do_sample": True, "temperature": 0.0})])[0]))

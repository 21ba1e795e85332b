"""Scores of continuations: both stacks say what the formulas say of the same ids, in any batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from coretrain.data.batch import Batch
from coretrain.evaluation.requests import Continuation
from coretrain.evaluation.scorer import Scorer
from coretrain.tokenizers.registry import named_tokenizer
from parity.gates import SCORED
from parity.oracles.gpt import exact
from parity.outcomes import hold
from parity.pair import BASIC, VARIANTS, make_config, perturbed, shared

VOCAB = 301


@pytest.fixture(scope="module", params=BASIC)
def made(request):
    """Both stacks, of the GPT-2 and of the Llama form with grouped heads, and their weights."""
    pair = shared(make_config(VARIANTS[request.param]))
    weights = perturbed(pair.config)
    pair.reset(weights)
    return pair, weights


def likely(pair, weights, ids):
    """Log-probability of each id after the first, and whether none is likelier, by the formulas."""
    row = np.array([ids], np.int32)
    logits = exact(pair.config.model, weights, Batch(row[:, :-1], row[:, 1:])).logits[0][:, :VOCAB]
    shifted = logits - logits.max(-1, keepdims=True)
    logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logprobs[np.arange(len(ids) - 1), ids[1:]], logits.argmax(-1) == ids[1:]


def asked(pair, weights):
    """Continuations of many lengths; of one each id is the likeliest, of one all but the first."""
    drawn = np.random.default_rng(3)

    def ids(count):
        return [int(one) for one in drawn.integers(0, VOCAB, count)]

    found = [Continuation(tuple(ids(1 + n % 9)), tuple(ids(1 + n % 5))) for n in range(24)]
    greedy = ids(4)
    for _ in range(5):
        row = np.array([[*greedy, 0]], np.int32)
        greedy.append(
            int(exact(pair.config.model, weights, Batch(row[:, :-1], row[:, 1:])).logits[0, -1, :VOCAB].argmax())
        )
    # a question with several endings, one of which begins another, and one that a longer context follows
    question, ending = tuple(ids(7)), tuple(ids(4))
    found += [Continuation(question, one) for one in (ending, ending[:2], tuple(ids(3)), tuple(ids(1)))]
    found.append(Continuation((*question, *ids(3)), tuple(ids(2))))
    return [
        *found,
        Continuation(tuple(greedy[:4]), tuple(greedy[4:])),
        Continuation(tuple(greedy[:3]), tuple(greedy[3:])),
    ]


def test_scores_are_those_of_the_formulas(made):
    """In float64, of each stack, with beginnings computed once and each time: what stands beside changes nothing."""
    pair, weights = made
    requests = asked(pair, weights)
    for stack, shares in itertools.product(pair.stacks, (True, False)):
        found = Scorer(stack, pair.config, named_tokenizer("bytes"), budget=256, shares=shares).score(requests)
        for one, told in zip(requests, found, strict=True):
            logprobs, likeliest = likely(pair, weights, [*one.context, *one.ids])
            scored = slice(len(one.context) - 1, None)
            hold(SCORED, abs(told.logprob - math.fsum(logprobs[scored])) / len(one.ids), f"{stack.name}: {one}")
            assert told.greedy == likeliest[scored].all()
        assert [one.greedy for one in found[-2:]] == [True, False]

"""Sampler = trainer: what a stack says of tokens that it samples is what it trains them from; both sample alike."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import jaxtrain.decode
from coretrain.alignment.gap import gap_figures
from coretrain.alignment.rollout import layout
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import IGNORED, Batch
from parity.errors import nrel
from parity.gates import LOGITS, SAMPLED, SAMPLES
from parity.outcomes import hold
from parity.pair import BASIC, VARIANTS, make_config, make_pair, perturbed, shared
from parity.probes import PROBES, unmutated

PROMPTS = [[5, 9, 2, 300, 0, 7], [11], [3, 3, 8], [40, 2]]
NEW = 12
DRAWN = Sampling(1.0, 0, 1.0, 3)


@pytest.fixture(scope="module", params=BASIC)
def pair(request):
    """Both stacks, of the GPT-2 and of the Llama form with grouped heads."""
    pair = shared(make_config(VARIANTS[request.param]))
    pair.reset(perturbed(pair.config))
    return pair


@pytest.fixture(autouse=True)
def rows_leave(monkeypatch):
    """In JAX too, where it isn't worth it for so few."""
    monkeypatch.setitem(jaxtrain.decode.WORTH, "cpu", 1)


def answers(stack, sampling=DRAWN):
    """Four answers, of which two end early, by ids that none of them says before."""
    free = stack.sample(PROMPTS, NEW, sampling, ())
    rows = stack.sample(PROMPTS, NEW, sampling, (free[0].ids[2], free[1].ids[6]))
    assert len({len(row.ids) for row in rows}) > 1, "all ending at once would prove little"
    return rows


def planes(batch, rows):
    """The sampler's log-probabilities [B, T] at the places of the labels, and which places those are."""
    mask = batch.labels != IGNORED
    sampled = np.zeros(mask.shape)
    sampled[mask] = np.concatenate([row.logprobs for row in rows])
    return sampled, mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_trainer_s(pair, temperature):
    """Of finished rows of prompt and answer, the end included, whatever was sampled beside it."""
    for stack in pair.stacks:
        rows = answers(stack, Sampling(temperature, 0, 1.0, 3))
        batch = layout(PROMPTS, rows, pair.config.model.context)
        sampled, mask = planes(batch, rows)
        trained = stack.token_logprobs(batch, temperature)
        assert not trained[~mask].any()
        hold(SAMPLED, gap_figures(trained, sampled, mask)["gap_max"], f"{stack.name}, temperature {temperature}")


def packed(prompts, rows, context):
    """All of them one after the other in a row, each with positions of its own, and its log-probabilities."""
    tokens, labels, positions = np.zeros((3, 1, context), np.int32)
    labels[:] = IGNORED
    at, sampled = 0, np.zeros((1, context))
    for prompt, row in zip(prompts, rows, strict=True):
        ids = [*prompt, *row.ids]
        tokens[0, at : at + len(ids)], positions[0, at : at + len(ids)] = ids, np.arange(len(ids))
        first, last = at + len(prompt) - 1, at + len(ids) - 1
        labels[0, first:last], sampled[0, first:last] = row.ids, row.logprobs
        at += len(ids)
    positions[0, at:] = np.arange(context - at)
    return Batch(tokens, labels, positions), sampled


def test_they_are_those_of_packed_rows(pair):
    """Several answers in one row of the trainer: the first three take 10 prompt tokens and at most 27 more."""
    for stack in pair.stacks:
        rows = answers(stack)[:3]
        batch, sampled = packed(PROMPTS[:3], rows, pair.config.model.context)
        mask = batch.labels != IGNORED
        found = gap_figures(stack.token_logprobs(batch), sampled, mask)["gap_max"]
        hold(SAMPLED, found, f"{stack.name}, packed")


def test_both_stacks_sample_the_same_ids(pair):
    """For many seeds, with log-probabilities that are as near as the trainers' are."""
    said = set()
    for seed in range(24):
        sampling = Sampling((1.0, 0.7, 1.3)[seed % 3], (0, 0, 50)[seed % 3], (1.0, 1.0, 0.9)[seed % 3], seed)
        ours, theirs = (stack.sample(PROMPTS, NEW, sampling, (7, 11)) for stack in pair.stacks)
        hold(SAMPLES, sum(a.ids != b.ids for a, b in zip(ours, theirs, strict=True)), f"seed {seed}")
        assert [row.ended for row in ours] == [row.ended for row in theirs]
        apart = [np.abs(np.subtract(a.logprobs, b.logprobs)).max() for a, b in zip(ours, theirs, strict=True)]
        hold(SAMPLED, float(max(apart)), f"torch and JAX, seed {seed}")
        said |= {tuple(row.ids) for row in ours}
    assert len(said) > 90, "another seed says something else"


def test_order_batch_and_neighbours_change_no_row(pair):
    """A row is its prompt and its number: the same ids alone, in another order, and beside others."""
    for stack in pair.stacks:
        whole = stack.sample(PROMPTS, NEW, DRAWN, (7, 11))
        for order in ([2, 0, 3, 1], [0, 3]):
            found = stack.sample([PROMPTS[row] for row in order], NEW, DRAWN, (7, 11), order)
            wrong = sum(row.ids != whole[number].ids for row, number in zip(found, order, strict=True))
            hold(SAMPLES, wrong, f"{stack.name}, rows {order}")
            apart = [
                np.abs(np.subtract(row.logprobs, whole[n].logprobs)).max() for row, n in zip(found, order, strict=True)
            ]
            hold(SAMPLED, float(max(apart)), f"{stack.name}, rows {order} against all")


def test_answers_to_one_prompt_share_its_keys_and_values(pair):
    """Groups in any order: each row says what it says where no other has its prompt, and a replay is bit-equal."""
    group = [PROMPTS[number] for number in (0, 1, 0, 0, 1, 2)]
    for stack in pair.stacks:
        rows = stack.sample(group, NEW, DRAWN, (7, 11))
        assert len({tuple(row.ids) for row in rows}) == 6
        for number in (2, 4):
            (alone,) = stack.sample([group[number]], NEW, DRAWN, (7, 11), [number])
            hold(SAMPLES, int(alone.ids != rows[number].ids), f"{stack.name}, row {number} of a group")
            apart = np.abs(np.subtract(alone.logprobs, rows[number].logprobs)).max()
            hold(SAMPLED, float(apart), f"{stack.name}, row {number} of a group")
        assert stack.replay(group, NEW, 1.0, [row.ids for row in rows]) == [row.logprobs for row in rows]


def test_many_rows_say_what_few_say(pair):
    """In JAX they have another cache and more padding before their prompts, also where the context leaves little."""
    prompts = [*PROMPTS, *PROMPTS, [1, 2, 3, 4, 5, 6, 7, 8, 9]]
    for tokens in (NEW, pair.config.model.context - 9):
        ours, theirs = (stack.sample(prompts, tokens, DRAWN, (7, 11)) for stack in pair.stacks)
        hold(SAMPLES, sum(a.ids != b.ids for a, b in zip(ours, theirs, strict=True)), f"9 rows, {tokens} tokens")
        few = pair.jax.sample(prompts[-2:], tokens, DRAWN, (7, 11), [7, 8])
        hold(
            SAMPLES, sum(a.ids != b.ids for a, b in zip(few, theirs[-2:], strict=True)), f"2 of 9 rows, {tokens} tokens"
        )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_replay_is_bit_equal(pair, temperature):
    """Steps of as many rows over the same ids, on one device."""
    for stack in pair.stacks:
        rows = answers(stack, Sampling(temperature, 0, 1.0, 3))
        replayed = stack.replay(PROMPTS, NEW, temperature, [row.ids for row in rows])
        assert replayed == [row.logprobs for row in rows], stack.name


@functools.cache
def narrow(variant, dtype):
    """Both stacks in another dtype."""
    config = make_config(VARIANTS[variant], precision__compute=dtype)
    return make_pair(config)


@pytest.mark.parametrize("variant", BASIC)
def test_the_gap_in_float32(variant):
    """In either stack, and a replay is bit-equal there too.

    Floor 5e-7 to 1.3e-6 over 30 seeds, with SSE4.2 as with AVX512; a head or a cache in bfloat16 is above 1e-3.
    """
    pair = narrow(variant, "float32")
    for stack in pair.stacks:
        rows = answers(stack)
        batch = layout(PROMPTS, rows, pair.config.model.context)
        sampled, mask = planes(batch, rows)
        found = gap_figures(stack.token_logprobs(batch), sampled, mask)
        assert 0 < found["gap_max"] < 2e-5, stack.name
        assert found["gap_outside"] == 0
        assert stack.replay(PROMPTS, NEW, 1.0, [row.ids for row in rows]) == [row.logprobs for row in rows]


@pytest.mark.parametrize("variant", BASIC)
@pytest.mark.parametrize("stack", ["torch", "jax"])
def test_what_bugs_are_looked_at_with_raises_no_alarm(variant, stack):
    """The probe of the planted bugs: a stack as it is against the other as it is."""
    seen = [unmutated(side, "sampled", variant, "perturbed") for side in (stack, *({"torch", "jax"} - {stack}))]
    for gate, error in PROBES["sampled"].judge(*seen, variant, "perturbed").items():
        hold(gate, error, f"{stack} against the other, {variant}")


@pytest.mark.parametrize("variant", [*BASIC, "llama-like with biases, tied, muon"])
def test_scores_of_both_stacks(variant):
    """The score head at every position of plain and of packed rows, below the head's adapter or without."""
    config = make_config(VARIANTS[variant])
    pair = make_pair(config.changed(model=config.model.model_copy(update={"score_head": True})))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 301, (4, 40), dtype=np.int32)
    positions = np.tile(np.concatenate([np.arange(13), np.arange(27)]).astype(np.int32), (4, 1))
    for batch in (Batch(tokens, tokens), Batch(tokens, tokens, positions)):
        ours, theirs = (stack.values(batch) for stack in pair.stacks)
        assert ours.dtype == theirs.dtype == np.float64
        assert ours.std() > 0.5
        hold(LOGITS, nrel(ours, theirs), f"scores, {variant}")

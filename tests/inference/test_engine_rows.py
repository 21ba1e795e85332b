"""Many requests at once: each says what it says alone, and none takes another with it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from coretrain.contract.decoding import chosen_logprobs
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import Batch
from coretrain.inference import engine as module
from coretrain.inference.answers import EngineFull
from coretrain.inference.engine import Engine
from jaxtrain import lanes as jax_lanes
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.refusal import refused
from tests.support.requests import STOP, TOKENS, alone, large_weights, requests, together
from torchtrain import lanes as torch_lanes
from torchtrain.trainer import Trainer as TorchTrainer

STACKS = {"torch": TorchTrainer, "jax": JaxTrainer}
ROTARY = {
    "model__position": "rope",
    "model__norm": "rmsnorm",
    "model__mlp": "swiglu",
    "model__bias": "false",
    "model__kv_heads": 2,
    "model__tied": "false",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: a stack's model, made once, in float64 unless `more` says otherwise."""
    from tests.support.configs import small_config

    held = {}

    def make(stack, **more):
        key = stack, str(more)
        if key not in held:
            fields = {"model__context": 64, "precision__compute": "float64"} | more
            config = small_config(tmp_path_factory.mktemp("run"), **fields)
            held[key] = STACKS[stack](config, large_weights(config))
        return held[key]

    return make


@pytest.fixture(params=STACKS)
def stack(request, made):
    return made(request.param)


@pytest.mark.parametrize("form", [{}, ROTARY], ids=["gpt2", "llama"])
@pytest.mark.parametrize("name", STACKS)
def test_logits_of_rows_are_those_of_a_pass_over_each_alone(made, name, form):
    """Unequal lengths, a prompt in pieces, rows that are moved, kept, put back, and at rest. Floor 2e-15."""
    stack = made(name, **form)
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 101, length).tolist() for length in (2, 33, 17)]

    def right(ids):
        """Log-probabilities after each, by the forward pass of training and evaluation; what follows is not seen."""
        tokens = np.array([[*ids, *[0] * (64 - len(ids))]], np.int32)
        found = [stack.token_logprobs(Batch(tokens, np.full_like(tokens, label)))[0] for label in range(0, 101, 20)]
        return np.stack(found, -1)[: len(ids)]

    def held(logits, wanted):
        logits = logits.reshape(-1, 101)
        rows = [chosen_logprobs(logits, np.full(len(logits), label), 1.0) for label in range(0, 101, 20)]
        assert np.abs(np.stack(rows, -1) - wanted).max() < 1e-12

    lanes = stack.lanes(4, 48)
    for row, ids in enumerate(texts):
        at = 0
        while at < len(ids):
            count = lanes.piece(len(ids) - at, 16)
            held(lanes.prefill(row, ids[at : at + count], at, True), right(ids)[at : at + count])
            at += count
    for _ in range(3):
        new, at = rng.integers(0, 101, 3), [len(ids) for ids in texts]
        texts = [[*ids, int(token)] for ids, token in zip(texts, new, strict=True)]
        found = lanes.step(new.astype(np.int32), np.array(at, np.int32))
        for ids, logits in zip(texts, found, strict=True):
            held(logits, right(ids)[-1])
    kept = lanes.keep(1, 20)
    lanes.move(2, 1, len(texts[2]))
    lanes.restore(2, kept, 18)
    found = lanes.step(np.array([0, 5, 9], np.int32), np.array([lanes.slots, len(texts[2]), 18], np.int32))
    held(found[1], right([*texts[2], 5])[-1])
    held(found[2], right([*texts[1][:18], 9])[-1])
    found = lanes.step(np.array([8, 0, 0], np.int32), np.array([len(texts[0]), lanes.slots, lanes.slots], np.int32))
    held(found[0], right([*texts[0], 8])[-1])
    lanes.close()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_answers_are_those_of_each_request_alone(stack, rows):
    asked = requests(24)
    assert together(stack, asked, rows) == alone(stack, asked)


@pytest.mark.parametrize("name", STACKS)
def test_answers_in_float32_with_rotary_positions_and_grouped_heads(made, name):
    stack, asked = made(name, precision__compute="float32", **ROTARY), requests(16, seed=1)
    assert together(stack, asked, 4, slots=48) == alone(stack, asked)


def off_by_one(lanes):
    """A token is put into the slot behind its own."""
    plain = lanes.step
    return "step", lambda self, tokens, at: plain(self, tokens, np.where(at < self.slots, at + 1, at))


def never_moved(lanes):
    return "move", lambda self, source, target, length: None


def moved_short(lanes):
    plain = lanes.move
    return "move", lambda self, source, target, length: plain(self, source, target, max(1, length // 2))


def kept_of_another(lanes):
    """What is put back is a row's that happens to lie there."""
    return "restore", lambda self, row, kept, length: None


def sees_another(lanes):
    """The rows of a step are answered by their neighbours' caches."""
    plain = lanes.step
    return "step", lambda self, tokens, at: plain(self, tokens, at)[::-1]


@pytest.mark.parametrize("bug", [off_by_one, never_moved, moved_short, kept_of_another, sees_another])
def test_bugs_in_the_rows_are_seen(made, bug, monkeypatch):
    stack, asked = made("torch"), requests(24)
    right = alone(stack, asked)
    monkeypatch.setattr(torch_lanes.Lanes, *bug(torch_lanes.Lanes))
    assert together(stack, asked, 3, kept=10**4) != right


def test_random_numbers_of_a_rows_place_are_seen(made, monkeypatch):
    stack, asked, plain = made("torch"), requests(24), module.choose_tokens
    places = iter(range(10**6))
    monkeypatch.setattr(
        module, "choose_tokens", lambda logits, sampling, at, rows: plain(logits, sampling, at, rows + next(places) % 3)
    )
    assert together(stack, asked, 3) != alone(stack, asked)


def test_a_choice_draws_the_numbers_of_its_row(stack):
    prompt, sampling = [5, 9, 2], Sampling(1.0, 0, 1.0, seed=4)
    with Engine(stack, rows=4) as engine:
        handles = [engine.submit(prompt, sampling, 8, number=number) for number in range(4)]
        found = [handle.wait(60).ids for handle in handles]
    assert found == stack.generate([prompt] * 4, 8, sampling, ())
    assert len({tuple(ids) for ids in found}) == 4


def test_log_probabilities_are_those_of_an_evaluation(stack):
    """Of prompt and answer, in float64; the likeliest first. Floor 4e-15."""
    prompt = [int(x) for x in np.random.default_rng(0).integers(0, 101, 30)]
    with Engine(stack, rows=2) as engine:
        answer = engine.submit(prompt, Sampling(0), 6, logprobs=3, prompt_logprobs=0).wait(60)
        again = engine.submit(prompt, Sampling(0), 0, prompt_logprobs=101).wait(60)
    ids = np.array([[*prompt, *answer.ids]], np.int32)
    right = stack.token_logprobs(Batch(ids[:, :-1], ids[:, 1:]))[0]
    assert answer.prompt[0].logprob is None
    found = [token.logprob for token in (*answer.prompt[1:], *answer.tokens)]
    assert np.abs(np.array(found) - right).max() < 1e-12
    assert [token.id for token in answer.prompt] == prompt
    for token in answer.tokens:
        assert token.top[0] == (token.id, pytest.approx(token.logprob, abs=1e-12)), "greedy: the likeliest was taken"
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
        assert len(token.top) == 3
    assert again.tokens == []
    assert [token.id for token in again.prompt] == prompt
    assert sum(np.exp(p) for _, p in again.prompt[5].top) == pytest.approx(1, abs=1e-12)


def test_a_conversations_earlier_turns_are_found_again(stack):
    first, second = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3], [8, 4, 6]
    with Engine(stack, rows=2) as engine:
        answer = engine.submit(first, Sampling(0), 6).wait(60)
        turn = [*first, *answer.ids, *second]
        later = engine.submit(turn, Sampling(0), 6).wait(60)
        other = engine.submit([*first[:-1], 99, 1], Sampling(0), 6).wait(60)
    assert (answer.reused, later.reused, other.reused) == (0, len(first) + 5, len(first) - 1)
    assert later.ids == stack.generate([turn], 6, Sampling(0), ())[0]
    assert other.ids == stack.generate([[*first[:-1], 99, 1]], 6, Sampling(0), ())[0]


def test_what_is_kept_has_a_limit(made):
    with Engine(made("torch"), rows=1, kept=40) as engine:
        for number in range(5):
            engine.submit([number] * 20, Sampling(0), 4).wait(60)
        assert sum(len(one.ids) for one in engine.prefixes.kept) <= 40
        assert engine.prefixes.kept[-1].ids[0] == 4


def test_a_cancelled_request_leaves_at_once_and_the_others_go_on(stack):
    asked = requests(3)
    begun = threading.Event()
    with Engine(stack, rows=2) as engine:
        gone = engine.submit([1, 2], Sampling(0), 60, on_token=lambda token: begun.set())
        others = [engine.submit(one.prompt, one.sampling, TOKENS, STOP) for one in asked]
        never = engine.submit([1, 2], Sampling(0), 60)
        never.cancel()
        assert begun.wait(60)
        gone.cancel()
        assert gone.wait(60).reason == "cancelled"
        assert 0 < len(gone.answer.tokens) < 60
        assert never.wait(60).tokens == []
        assert [handle.wait(60).ids for handle in others] == alone(stack, asked)


def test_what_a_callback_raises_is_its_own_requests_error(stack):
    asked = requests(3)

    def broken(token):
        raise OSError("the client went away")

    with Engine(stack, rows=4) as engine:
        bad = engine.submit([1, 2], Sampling(0), 9, on_token=broken)
        worse = engine.submit([1, 2], Sampling(0), 2, on_end=broken)
        others = [engine.submit(one.prompt, one.sampling, TOKENS, STOP) for one in asked]
        assert (bad.wait(60).reason, str(bad.answer.error)) == ("error", "the client went away")
        assert len(worse.wait(60).ids) == 2
        assert [handle.wait(60).ids for handle in others] == alone(stack, asked)


def test_after_a_fault_of_the_stack_it_answers_again(stack, monkeypatch):
    kind = {"torch": torch_lanes, "jax": jax_lanes}[stack.name].Lanes
    plain, faults = kind.step, iter([True])

    def step(self, tokens, at):
        if next(faults, False):
            raise MemoryError("not enough")
        return plain(self, tokens, at)

    monkeypatch.setattr(kind, "step", step)
    asked = requests(3)
    with Engine(stack, rows=2) as engine:
        bad = engine.submit([1, 2], Sampling(0), 9).wait(60)
        assert (bad.reason, type(bad.error)) == ("error", MemoryError)
        handles = [engine.submit(one.prompt, one.sampling, TOKENS, STOP) for one in asked]
        assert [handle.wait(60).ids for handle in handles] == alone(stack, asked)


def test_weights_that_have_diverged_are_said(small_config):
    config = small_config()
    broken = {name: value * np.nan for name, value in large_weights(config).items()}
    with Engine(TorchTrainer(config, broken), rows=2) as engine:
        answer = engine.submit([1], Sampling(0), 4).wait(60)
        assert answer.reason == "error"
        assert answer.error.code == "contract/logits-not-finite"


def test_what_cannot_be_answered_is_refused(made):
    with Engine(made("torch"), rows=1, slots=32, waiting=2) as engine:
        with refused("contract/prompt-empty"):
            engine.submit([], Sampling(0), 4)
        with refused("contract/prompt-outside-vocabulary", "101"):
            engine.submit([101], Sampling(0), 4)
        with refused("inference/request-too-long", "30", "3", "32", "at most 2 tokens"):
            engine.submit([1] * 30, Sampling(0), 3)
        with refused("inference/request-too-long", "at most 0 tokens"):
            engine.submit([1] * 40, Sampling(0), 3)
        with refused("inference/adapter-unknown", "other", "none"):
            engine.submit([1], Sampling(0), 3, adapter="other")
        hold, begun = threading.Event(), threading.Event()
        first = engine.submit([1], Sampling(0), 2, on_token=lambda token: (begun.set(), hold.wait(60)))
        assert begun.wait(60)
        rest = [engine.submit([1], Sampling(0), 2) for _ in range(2)]
        with pytest.raises(EngineFull):
            engine.submit([1], Sampling(0), 2)
        assert engine.statistics().waiting == 2
        hold.set()
        assert [len(handle.wait(60).ids) for handle in (first, *rest)] == [2, 2, 2]


def test_the_end(stack):
    engine = Engine(stack, rows=1)
    handles = [engine.submit([1, 2], Sampling(0), 20) for _ in range(3)]
    assert engine.drain(60)
    assert [len(handle.answer.ids) for handle in handles] == [20] * 3
    with refused("inference/engine-closed"):
        engine.submit([1], Sampling(0), 1)
    engine.close()
    engine.close()
    assert not engine.thread.is_alive()
    engine = Engine(stack, rows=1)
    handles = [engine.submit([1, 2], Sampling(0), 60) for _ in range(3)]
    engine.close()
    assert [handle.wait(1).reason for handle in handles[1:]] == ["cancelled"] * 2
    assert not engine.drain(0) or handles[0].done


def test_long_prompts_do_not_hold_up_what_is_being_said(made, monkeypatch):
    """Between two tokens of an answer at most so many of another's prompt are put in."""
    monkeypatch.setattr(module, "BESIDE", 8)
    events = []
    plain = torch_lanes.Lanes.prefill

    def prefill(self, row, ids, at, every=False):
        if len(ids) > 1:
            events.append(len(ids))
        return plain(self, row, ids, at, every)

    monkeypatch.setattr(torch_lanes.Lanes, "prefill", prefill)
    begun = threading.Event()

    def said(token):
        events.append("token")
        begun.set()

    with Engine(made("torch"), rows=3) as engine:
        first = engine.submit([1, 2], Sampling(0), 40, on_token=said)
        assert begun.wait(60)
        later = [engine.submit([number] * 40, Sampling(0), 1) for number in range(2)]
        for handle in (first, *later):
            handle.wait(60)
    between = "".join("t" if event == "token" else "p" for event in events[1:])
    assert sum(event for event in events[1:] if event != "token") == 80
    assert "pp" not in between.rstrip("p")


def test_jax_compiles_few_shapes_whatever_the_lengths(made):
    lanes = made("jax").lanes(4, 48)

    def programs():
        names = ("_start", "_layer", "_logits", "_moved", "_copied", "_restored")
        return sum(getattr(jax_lanes, name)._cache_size() for name in names)

    def work(first, lengths):
        for length in lengths:
            at = 0
            while at < length:
                count = lanes.piece(length - at, 64)
                lanes.prefill(2, [1] * count, at)
                at += count
            lanes.move(2, 1, length)
            lanes.restore(3, lanes.keep(2, length), length)
        for rows in range(1, 5):
            lanes.step(np.ones(rows, np.int32), np.arange(first, first + rows, dtype=np.int32))

    work(0, (3, 16, 40))
    before = programs()
    work(9, range(1, 48))
    assert programs() == before

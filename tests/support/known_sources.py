"""What is known of rollouts as a source of batches, with a policy of one number in place of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from coretrain.contract.decoding import Sampled
from coretrain.data.batch import IGNORED
from tests.support.made_rollouts import run_config
from tests.support.refusal import refused

END = 9


class Prompts:
    """Prompt n is of n % 3 + 1 tokens; the first ones of a rollout have its number."""

    stop = (END,)

    def prompt(self, number: int):
        return [number % 7 + 1] * (number % 3 + 1), {"number": number}

    def of_rollout(self, rollout: int, count: int):
        return np.arange(count) + 10 * rollout

    def validation(self, count: int):
        return np.arange(min(count, 5)) + 100

    def decoded(self, ids) -> str:
        return " ".join(map(str, ids))


class Policy:
    """Answers with its weight, the seed and the row; `values` and log-probabilities tell of which weight they are."""

    def __init__(self) -> None:
        self.weight, self.asked = 1, list[tuple[list[list[int]], Any]]()

    def sample(self, prompts, tokens, sampling, stop, numbers=None):
        assert (stop, numbers) == ((END,), None)
        self.asked.append(([list(one) for one in prompts], sampling))
        found = []
        for row in range(len(prompts)):
            ids = [(self.weight + row + sampling.seed % 5) % 8 + 1 for _ in range(row % (tokens - 1))]
            ended = row % 4 != 3
            ids.append(END if ended else 1)
            found.append(Sampled(ids, [-0.5 * self.weight] * len(ids), ended))
        return found

    def token_logprobs(self, batch, temperature=1.0):
        return np.where(batch.labels != IGNORED, -0.5 * self.weight / temperature, 0.0)

    def values(self, batch):
        return np.full(batch.labels.shape, float(self.weight))


class Reward:
    """The number of the prompt and the row's place, in parts; with `fault`, none."""

    def __init__(self, fault: str | None = None) -> None:
        self.fault, self.answers = fault, list[Any]()

    def score(self, answers: Sequence[Any]):
        self.answers = list(answers)
        rows = np.arange(len(answers)) * 0.25
        return import_module("coretrain.alignment.rewards.reward").Scored(
            rows + 1, {"row": rows, "one": rows * 0 + 1}, self.fault
        )

    def close(self) -> None:
        pass


def rollouts(config, policy: Policy, reward: Reward | None = None, referred: bool = True):
    """The source."""
    answering = import_module("coretrain.alignment.answering").Answering(config, Prompts(), reward or Reward(), policy)
    return import_module("coretrain.alignment.rollouts").Rollouts(config, answering, reference if referred else None)


def reference(batch, temperature):
    """Log-probabilities of another policy."""
    return np.where(batch.labels != IGNORED, -0.7 / temperature, 0.0)


def ppo(**align: Any):
    """Rollouts of 8 answers, each for 4 updates of 4."""
    return run_config("ppo", epochs=2, minibatches=2, **align)


def a_rollout_is_made_with_the_weights_of_its_first_update() -> None:
    policy = Policy()
    source = rollouts(ppo(), policy)
    seen = []
    for batch in source.batches(0, 12):
        seen.append(sorted(set(batch.planes["old"][batch.labels != IGNORED].tolist())))
        policy.weight += 1
    assert seen == [[-0.5]] * 4 + [[-2.5]] * 4 + [[-4.5]] * 4
    assert len(policy.asked) == 3


def each_pass_has_every_answer_once() -> None:
    source = rollouts(ppo(), Policy())
    made = [batch.tokens.tolist() for batch in source.batches(0, 4)]
    whole = sorted(source.rollout["tokens"].astype(int).tolist())
    assert sorted(made[0] + made[1]) == sorted(made[2] + made[3]) == whole


def prompts_come_in_groups() -> None:
    """Two prompts of two answers each; every answer of a group has the same prompt, and the next rollout others."""
    policy = Policy()
    list(rollouts(run_config("grpo", group=2), policy).batches(0, 2))
    first, second = (prompts for prompts, _ in policy.asked)
    assert first == [[1], [1], [2, 2], [2, 2]]
    assert second == [[4, 4], [4, 4], [5, 5, 5], [5, 5, 5]]


def a_rollouts_numbers_are_its_own() -> None:
    """Sampled whole, at the run's temperature; the seed is another in each rollout and in each run, and always the
    same."""

    def seeds(**changes: Any) -> list[Any]:
        policy = Policy()
        config = run_config("grpo", temperature=0.7).changed(**changes)
        list(rollouts(config, policy).batches(0, 3))
        return [sampling for _, sampling in policy.asked]

    once, again, other = seeds(), seeds(), seeds(train__seed=6)
    assert once == again
    assert {(one.temperature, one.top_k, one.top_p) for one in once} == {(0.7, 0, 1.0)}
    assert len({one.seed for one in (*once, *other)}) == 6


def temperatures_are_the_samplers() -> None:
    """Of trainer and reference too."""
    source = rollouts(ppo(temperature=0.5), Policy())
    next(source.batches(0, 1))
    mask = source.rollout["labels"] != IGNORED
    assert set(source.rollout["old"][mask].tolist()) == {-1.0}
    assert set(source.rollout["reference"][mask].tolist()) == {-1.4}


def an_only_update_has_no_old_policy() -> None:
    """Its ratios are then 1 to the bit; with several updates, a KL in the reward or a replay there is one."""
    (batch,) = rollouts(run_config("grpo"), Policy()).batches(0, 1)
    assert "old" not in batch.planes
    for config in (
        run_config("grpo", minibatches=2),
        run_config("grpo", kl_place="reward", kl_coefficient=0.1),
        run_config("grpo", correction="truncate"),
        run_config("grpo", replay=True),
    ):
        assert "old" in next(rollouts(config, Policy()).batches(0, 1)).planes


def a_replay_takes_the_samplers_numbers() -> None:
    source = rollouts(ppo(temperature=0.5, replay=True), Policy())
    next(source.batches(0, 1))
    mask = source.rollout["labels"] != IGNORED
    assert set(source.rollout["old"][mask].tolist()) == {-0.5}
    assert source.figures()["gap_max"] == pytest.approx(0.5, rel=1e-15), "the trainer is still looked at"


def the_coefficient_moves_after_a_rollout() -> None:
    """By hand: d = -0.5 + 0.7 = 0.2 a token, of 8 answers with 1, 2, 3, 1, 2, 3, 1, 2 tokens: 0.375 nats an answer. The
    target is 0.3: off by 1/4, of which 1/5 counts: 0.05 x (1 + 0.2 x 8 / 100)."""
    policy = Policy()
    source = rollouts(ppo(kl_controller="adaptive", kl_target=0.3, kl_horizon=100), policy)
    told = [source.figures()["kl_coefficient"] for _ in source.batches(0, 5)]
    assert told == [0.05] * 4 + [pytest.approx(0.0508, rel=1e-15)]
    # at temperature 0.5 the trainer's are -1 and -1.4, 0.75 nats an answer, and the sampler's stay -0.5
    cold = rollouts(ppo(temperature=0.5, kl_controller="adaptive", kl_target=0.7, kl_horizon=100), policy)
    list(cold.batches(0, 4))
    assert cold.coefficient == pytest.approx(0.05 * (1 + (0.75 / 0.7 - 1) * 8 / 100), rel=1e-14)
    fixed = rollouts(ppo(), Policy())
    assert {fixed.figures()["kl_coefficient"] for _ in fixed.batches(0, 9)} == {0.05}


def a_rollout_in_progress_is_taken_up() -> None:
    """After each of 7 updates: another source that is given state and arrays goes on with the same batches, though the
    weights have moved; a save right after that keeps the same. Between two rollouts there is nothing to keep."""
    config = ppo(kl_controller="adaptive", kl_target=0.3, kl_horizon=100)

    def watched(source, policy, start: int, stop: int) -> list[Any]:
        found = []
        for batch in source.batches(start, stop):
            policy.weight += 1
            found.append((batch.tokens.tolist(), {name: each.tolist() for name, each in batch.planes.items()}))
        return found

    whole_policy = Policy()
    whole = watched(rollouts(config, whole_policy), whole_policy, 0, 12)
    for stop in range(1, 8):
        policy = Policy()
        source = rollouts(config, policy)
        watched(source, policy, 0, stop)
        state, arrays = source.state(), source.arrays()
        assert bool(arrays) is bool(stop % 4)
        other = rollouts(config, policy)
        other.load(state, arrays)
        kept = other.arrays()
        assert other.state() == state
        assert {name: array.tolist() for name, array in kept.items()} == {n: a.tolist() for n, a in arrays.items()}
        asked = len(policy.asked)
        assert watched(other, policy, stop, 12) == whole[stop:]
        assert len(policy.asked) - asked == (2 if stop <= 4 else 1)


def what_is_loaded_replaces_what_was_there() -> None:
    """As at a rollback: a rollout that was made since is forgotten."""
    policy = Policy()
    source = rollouts(ppo(kl_controller="adaptive", kl_target=0.3, kl_horizon=100), policy)
    list(source.batches(0, 5))
    source.load({}, {})
    assert (source.state(), source.arrays(), source.figures()) == ({"kl_coefficient": 0.05}, {}, {})
    policy.weight = 9
    batch = next(source.batches(5, 6))
    assert set(batch.planes["old"][batch.labels != IGNORED].tolist()) == {-4.5}


def a_rollout_of_another_size_is_refused() -> None:
    """One of 8 answers, where the run asks for 4: its updates would be twice as large."""
    source = rollouts(ppo(), Policy())
    next(source.batches(0, 1))
    with refused("alignment/rollout-damaged", "8 answers", "4"):
        rollouts(run_config("ppo", epochs=4), Policy()).load(source.state(), source.arrays())


def a_fault_is_told_with_each_update() -> None:
    """Nothing counts, and nothing is lost: the next rollout is as it would have been."""
    reward = Reward("my_rewards:exact raised")
    source = rollouts(ppo(), Policy(), reward)
    for batch in source.batches(0, 4):
        assert source.fault() == "my_rewards:exact raised"
        assert not batch.planes["share"].any()
        if source.state().get("rollout") == 0:  # a run that goes on from here skips the rest of them too
            other = rollouts(ppo(), Policy())
            other.load(source.state(), source.arrays())
            assert other.fault() == "my_rewards:exact raised"
    reward.fault = None
    next(source.batches(4, 5))
    assert source.fault() == ""


def the_reward_is_asked_about_each_answer() -> None:
    reward = Reward()
    source = rollouts(ppo(), Policy(), reward)
    next(source.batches(0, 1))
    third, fourth = reward.answers[2:4]
    assert (third.prompt, third.ended, third.tokens, third.fields) == ("3 3 3", True, 3, {"number": 2})
    assert third.completion == " ".join(map(str, third.ids[3:-1])), "without its end"
    assert third.ids[-1] == END
    assert (fourth.ended, fourth.completion) == (False, "1"), "cut off: its last token is its own"
    assert source.rollout["rewards"].tolist() == [1 + 0.25 * row for row in range(8)]
    assert (source.figures()["reward_row"], source.figures()["reward_one"]) == (0.875, 1.0)


def an_evaluation_samples_held_out_prompts() -> None:
    """As the policy samples, and greedily; the best is that of the sampled answers' mean reward."""
    policy = Policy()
    source = rollouts(run_config("grpo", temperature=0.7), policy)
    loss, figures = source.evaluate()
    assert (loss, figures["reward"]) == (-1.5, 1.5)
    assert [sampling.temperature for _, sampling in policy.asked] == [0.7, 0.0]
    assert [len(prompts) for prompts, _ in policy.asked] == [5, 5]
    assert figures["ended"] == 0.8
    assert [row["ended"] for row in source.answers()] == [True, True, True, False, True]
    assert policy.asked[0][1] == (source.evaluate(), policy.asked[2][1])[1], "the same numbers every time"


def the_truth_is_that_of_the_sampled_answers() -> None:
    """Not of the likeliest, which may be right where most of what is sampled isn't."""

    class Sure(Policy):
        def sample(self, prompts, tokens, sampling, stop, numbers=None):
            found = super().sample(prompts, tokens, sampling, stop, numbers)
            return [replace(one, ended=True) for one in found] if sampling.temperature == 0 else found

    class Ended(Reward):
        def score(self, answers):
            told = np.array([float(answer.ended) for answer in answers])
            return import_module("coretrain.alignment.rewards.reward").Scored(told, {"ended": told})

    answering = import_module("coretrain.alignment.answering")
    asked = answering.Answering(run_config("grpo"), Prompts(), Reward(), Sure(), truth=Ended())
    assert asked.examine(4, 1.0)[0]["truth"] == 0.8


FACTS: dict[str, Callable[[], None]] = {
    fact.__name__: fact
    for fact in (
        a_rollout_is_made_with_the_weights_of_its_first_update,
        each_pass_has_every_answer_once,
        prompts_come_in_groups,
        a_rollouts_numbers_are_its_own,
        temperatures_are_the_samplers,
        an_only_update_has_no_old_policy,
        a_replay_takes_the_samplers_numbers,
        the_coefficient_moves_after_a_rollout,
        a_rollout_in_progress_is_taken_up,
        what_is_loaded_replaces_what_was_there,
        a_rollout_of_another_size_is_refused,
        a_fault_is_told_with_each_update,
        the_reward_is_asked_about_each_answer,
        an_evaluation_samples_held_out_prompts,
        the_truth_is_that_of_the_sampled_answers,
    )
}

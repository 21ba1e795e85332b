"""Rollouts as a source of batches: what is known of them, and bugs that each break one of these facts."""

from __future__ import annotations

import pytest

from tests.support.known_sources import FACTS
from tests.support.planted import planted

SOURCE, ANSWERING = "coretrain.alignment.rollouts", "coretrain.alignment.answering"
BUGS = {
    # module, what stands there, what it becomes, the fact that breaks
    "a rollout for each update": (
        SOURCE,
        "if number != self.number:",
        "if True:",
        "a_rollout_is_made_with_the_weights_of_its_first_update",
    ),
    "one rollout for ever": (
        SOURCE,
        "if number != self.number:",
        "if self.number < 0:",
        "a_rollout_is_made_with_the_weights_of_its_first_update",
    ),
    "always a rollout's first batch": (
        SOURCE, "yield self.updates[place]", "yield self.updates[0]", "each_pass_has_every_answer_once",
    ),
    "prompts of a group far apart": (
        SOURCE, "np.repeat(self.answering.prompts.of_rollout(number, rows // group), group)",
        "np.tile(self.answering.prompts.of_rollout(number, rows // group), group)", "prompts_come_in_groups",
    ),
    "the first prompts again and again": (
        SOURCE, "prompts.of_rollout(number,", "prompts.of_rollout(0,", "prompts_come_in_groups",
    ),
    "the same random numbers in every rollout": (
        SOURCE, 'short_hash("rollout", config.train.seed, number)', 'short_hash("rollout", config.train.seed)',
        "a_rollouts_numbers_are_its_own",
    ),
    "the same random numbers in every run": (
        SOURCE, 'short_hash("rollout", config.train.seed, number)', 'short_hash("rollout", number)',
        "a_rollouts_numbers_are_its_own",
    ),
    "a sampler at temperature 1": (
        SOURCE, "Sampling(align.temperature, 0, 1.0, seed)", "Sampling(1.0, 0, 1.0, seed)",
        "a_rollouts_numbers_are_its_own",
    ),
    "top-k in the sampler": (
        SOURCE, "Sampling(align.temperature, 0, 1.0, seed)", "Sampling(align.temperature, 50, 1.0, seed)",
        "a_rollouts_numbers_are_its_own",
    ),
    "a trainer at temperature 1": (
        SOURCE, "token_logprobs(batch.rows(some), align.temperature)", "token_logprobs(batch.rows(some))",
        "temperatures_are_the_samplers",
    ),
    "a reference at temperature 1": (
        SOURCE, "self.reference(batch, align.temperature)", "self.reference(batch, 1.0)",
        "temperatures_are_the_samplers",
    ),
    "the policy as its own reference": (
        SOURCE, "self._wide(self.reference(batch, align.temperature))", "trainer", "temperatures_are_the_samplers",
    ),
    "no old policy with several updates": (
        SOURCE, "self.updates_each == 1 and", "", "an_only_update_has_no_old_policy",
    ),
    "old is the sampler's, unasked": (
        SOURCE, "if align.replay else None if alone else trainer", "if not alone else None",
        "temperatures_are_the_samplers",
    ),
    "a replay that is none": (
        SOURCE, "sampled_plane(batch, asked.sampled) if align.replay else None if alone else trainer",
        "None if alone else trainer", "a_replay_takes_the_samplers_numbers",
    ),
    "the coefficient stays": (
        SOURCE, "self.coefficient = self.controller.after(used, nats, rows)", "pass",
        "the_coefficient_moves_after_a_rollout",
    ),
    "the coefficient is told after it has moved": (
        SOURCE, 'self.seen["kl_coefficient"] = used\n            nats', "nats", "the_coefficient_moves_after_a_rollout",
    ),
    "the coefficient follows the sampler's numbers": (
        SOURCE, 'sequence_kl("k1", arrays["old"],', 'sequence_kl("k1", arrays["sampled"],',
        "the_coefficient_moves_after_a_rollout",
    ),
    "the truth of the likeliest answers": (
        ANSWERING, "self._scored(self.truth, asked.answers)", "self._scored(self.truth, likeliest.answers)",
        "the_truth_is_that_of_the_sampled_answers",
    ),
    "answers are counted as updates": (
        SOURCE, "self.controller.after(used, nats, rows)", "self.controller.after(used, nats, 1)",
        "the_coefficient_moves_after_a_rollout",
    ),
    "a controller that is always fixed": (
        SOURCE, 'align.kl_controller == "adaptive"', "False", "the_coefficient_moves_after_a_rollout",
    ),
    "a rollout in progress is made anew": (
        SOURCE, "return dict(self.rollout) if self._in_progress() else {}", "return {}",
        "a_rollout_in_progress_is_taken_up",
    ),
    "a rollout that is done is kept": (
        SOURCE, "(self.index + 1) % self.updates_each != 0", "True", "a_rollout_in_progress_is_taken_up",
    ),
    "a rollout of any size is taken up": (
        SOURCE, "read_arrays(arrays, self.config)", "read_arrays(arrays)", "a_rollout_of_another_size_is_refused",
    ),
    "a fault is forgotten at a resume": (
        SOURCE, 'str(state.get("fault", ""))', '""', "a_fault_is_told_with_each_update",
    ),
    "the place in a rollout is forgotten": (
        SOURCE, '            self.index = int(state["index"])\n', "", "a_rollout_in_progress_is_taken_up",
    ),
    "a resume begins with the first coefficient": (
        SOURCE, "read_coefficient(state, start), -1, -1", "start, -1, -1", "a_rollout_in_progress_is_taken_up",
    ),
    "minibatches in another order after a resume": (
        SOURCE, 'self._take(int(state["rollout"])', 'self._take(int(state["rollout"]) + 1',
        "a_rollout_in_progress_is_taken_up",
    ),
    "a rollback keeps the rollout made since": (
        SOURCE, "self.coefficient, self.number, self.index = read_coefficient(state, start), -1, -1",
        "self.coefficient = read_coefficient(state, start)", "what_is_loaded_replaces_what_was_there",
    ),
    "a fault is learnt from": (
        SOURCE, "np.full(rows, not asked.fault)", "np.full(rows, True)", "a_fault_is_told_with_each_update",
    ),
    "a fault stays": (
        SOURCE, "self._take(number, arrays, asked.fault)", "self._take(number, arrays, self.trouble or asked.fault)",
        "a_fault_is_told_with_each_update",
    ),
    "an answer that was cut off loses its last token": (
        ANSWERING, "said.ids[:-1] if said.ended else said.ids", "said.ids[:-1]",
        "the_reward_is_asked_about_each_answer",
    ),
    "the end token is part of the text": (
        ANSWERING, "said.ids[:-1] if said.ended else said.ids", "said.ids", "the_reward_is_asked_about_each_answer",
    ),
    "whole rewards": (
        ANSWERING, "np.array(rewards, np.float64)", "np.array(rewards, np.int64).astype(np.float64)",
        "the_reward_is_asked_about_each_answer",
    ),
    "the reward model doesn't see the prompt": (
        ANSWERING, "len(said.ids), one + said.ids)", "len(said.ids), said.ids)",
        "the_reward_is_asked_about_each_answer",
    ),
    "an evaluation is greedy": (
        ANSWERING, "Sampling(temperature, 0, 1.0, train.seed)", "Sampling(0.0, 0, 1.0, train.seed)",
        "an_evaluation_samples_held_out_prompts",
    ),
    "the best is the worst": (
        SOURCE, 'return -figures["reward"], figures', 'return figures["reward"], figures',
        "an_evaluation_samples_held_out_prompts",
    ),
}  # fmt: skip
BROKEN = (AssertionError, IndexError, KeyError, pytest.fail.Exception)


@pytest.mark.parametrize("fact", FACTS)
def test_known(fact):
    FACTS[fact]()


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug):
    module, old, new, fact = BUGS[bug]
    with planted(module, old, new, ("coretrain.alignment",)), pytest.raises(BROKEN):
        FACTS[fact]()

"""Bugs planted in a rollout's arrays and batches: most of them were found in other projects, where models went
on learning in spite of them. Each changes one place, and each must break what is known."""

from __future__ import annotations

import pytest

from tests.support.known_rollouts import FACTS
from tests.support.planted import planted

BUGS = {
    # in the module rollout: what stands there, what it becomes, the fact that breaks
    "the end token is erased with the padding": (
        "    return Batch(tokens, labels)",
        "    labels[labels == 0] = IGNORED\n    return Batch(tokens, labels)",
        "an_answer_lies_behind_its_prompt",
    ),
    "the end token is left out": (
        "labels[row, len(prompt) - 1 : len(ids) - 1] = answer.ids",
        "labels[row, len(prompt) - 1 : len(ids) - 2] = answer.ids[:-1]",
        "an_answer_lies_behind_its_prompt",
    ),
    "labels one place off": (
        "labels[row, len(prompt) - 1 : len(ids) - 1]",
        "labels[row, len(prompt) : len(ids)]",
        "an_answer_lies_behind_its_prompt",
    ),
    "the prompt's last token is learnt": (
        "    return Batch(tokens, labels)",
        "    labels[:, 0] = tokens[:, 1]\n    return Batch(tokens, labels)",
        "an_answer_lies_behind_its_prompt",
    ),
    "the sampler's numbers in the order of columns": (
        "plane[rows.labels != IGNORED] =",
        "plane.T[(rows.labels != IGNORED).T] =",
        "an_answer_lies_behind_its_prompt",
    ),
    "the divergence in the loss is in the rewards too": (
        'if align.kl_place == "reward" and kl_coefficient:',
        "if kl_coefficient:",
        "a_kl_in_the_loss_is_not_in_the_rewards",
    ),
    "always k1": ('kl_values(align.kl or "k1",', 'kl_values("k1",', "the_kl_of_a_group_is_in_its_rewards"),
    "the controller's coefficient isn't taken": (
        "token_rewards(scores, mask, kl, kl_coefficient)",
        "token_rewards(scores, mask, kl, align.kl_coefficient or 0.0)",
        "ppo_by_formula",
    ),
    "returns of whitened advantages": (
        '    return {"advantages": whitened(each, part) if align.whiten else each, **returns}',
        "    each = whitened(each, part) if align.whiten else each\n"
        '    return {"advantages": each, **({"returns": each + values} if returns else {})}',
        "ppo_by_formula",
    ),
    "rows left out are whitened along": (
        "whitened(each, part) if",
        "whitened(each, mask) if",
        "answers_left_out_count_nowhere",
    ),
    "the reward of a row left out poisons": (
        "given = kept(rewards, counts)\n    check_finite(given, counts)",
        "given = np.asarray(rewards, np.float64)",
        "answers_left_out_count_nowhere",
    ),
    "only groups refuse a NaN": (
        "    check_finite(given, counts)\n",
        "",
        "a_reward_that_is_no_number_stops",
    ),
    "cut answers are always left out": (
        "if align.mask_truncated:",
        "if True:",
        "cut_answers_can_be_left_out",
    ),
    "whole answers are left out": (
        "counts &= ended",
        "counts &= ~ended",
        "cut_answers_can_be_left_out",
    ),
    "groups with a spread are left out": (
        "counts &= ~without_spread(",
        "counts &= without_spread(",
        "groups_without_spread_can_be_left_out",
    ),
    "what counts is the raw reward": (
        "token_rewards(scores, mask, kl, kl_coefficient)",
        "token_rewards(given, mask, kl, kl_coefficient)",
        "ppo_by_formula",
    ),
    "rewards are never scaled": ("if align.whiten_rewards:", "if False:", "rewards_of_tokens_are_scaled"),
    "rewards are shifted": (
        "whitened(rewards, part, shift=False)",
        "whitened(rewards, part)",
        "rewards_of_tokens_are_scaled",
    ),
    "shares of the whole rollout": (
        'planes = {"share": shares(align.aggregate, labels != IGNORED, align.tokens, counted)}',
        'every = arrays["labels"] != IGNORED\n'
        '    planes = {"share": shares(align.aggregate, every, align.tokens, arrays["counted"] > 0)[rows]}',
        "shares_are_those_of_the_update",
    ),
    "a row's share by its micro-batch": (
        'planes = {"share": shares(align.aggregate, labels != IGNORED, align.tokens, counted)}',
        "every = labels != IGNORED\n"
        "    each = [shares(align.aggregate, every[n:][:1], align.tokens, counted[n:][:1]) for n in range(len(rows))]\n"
        '    planes = {"share": np.concatenate(each) / len(rows)}',
        "shares_are_those_of_the_update",
    ),
    "planes of other rows": (
        "planes |= {name: arrays[name][rows] for",
        "planes |= {name: arrays[name][: len(rows)] for",
        "rows_of_a_batch_stay_together",
    ),
    "each epoch in the same order": ("/epoch {epoch}", "", "an_epoch_has_every_answer_once"),
    "each rollout in the same order": ("/rollout {rollout}", "", "an_epoch_has_every_answer_once"),
    "each seed in the same order": ("{config.train.seed}/", "", "an_epoch_has_every_answer_once"),
    "the first rows come again and again": (
        "order[start : start + each]",
        "order[:each]",
        "an_epoch_has_every_answer_once",
    ),
    "planes in float32 whatever the run": (
        'config.precision.compute == "float64"',
        "False",
        "planes_are_as_precise_as_the_run",
    ),
    "the floor of a correction is forgotten": (
        "(align.correction_cap or np.inf, align.correction_floor)",
        "(align.correction_cap or np.inf, 0.0)",
        "weights_against_the_sampler",
    ),
    "weights of the reference": (
        'corrections(*how, arrays["old"], arrays["sampled"]',
        'corrections(*how, arrays["sampled"], arrays["old"]',
        "weights_against_the_sampler",
    ),
    "values of rows left out are told along": (
        'explained_variance(arrays["values"], arrays["returns"], part)',
        'explained_variance(arrays["values"], arrays["returns"], mask)',
        "answers_left_out_count_nowhere",
    ),
    "figures of rows left out": (
        'arrays["rewards"][counted]\n',
        'arrays["rewards"]\n',
        "answers_left_out_count_nowhere",
    ),
}
ROOMS = ("coretrain.alignment",)
BROKEN = (AssertionError, pytest.fail.Exception)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug):
    old, new, fact = BUGS[bug]
    with planted("coretrain.alignment.rollout", old, new, ROOMS), pytest.raises(BROKEN):
        FACTS[fact]()

"""Bugs planted in the numbers of reinforcement learning: most of them were found in other projects, where models went
on learning in spite of them. Each changes one place, and each must break what is known."""

from __future__ import annotations

import pytest

from tests.support import known_advantages, known_shares
from tests.support.planted import planted

FACTS = known_advantages.FACTS | known_shares.FACTS
BUGS = {
    # a module, what stands there, what it becomes, the fact that breaks
    # rewards and where they stand
    "rewards are cut to integers": (
        "returns",
        "rewards[rows, last] += np.asarray(scores)[rows]",
        "rewards[rows, last] += np.asarray(scores)[rows].astype(np.int32)",
        "rewards_keep_their_fractions",
    ),
    "a score stands one place too early": (
        "returns",
        "rewards[rows, last] +=",
        "rewards[rows, last - 1] +=",
        "a_score_stands_at_the_last_token",
    ),
    "a score stands at the row's end": (
        "returns",
        "rewards[rows, last] +=",
        "rewards[rows, -1] +=",
        "a_score_stands_at_the_last_token",
    ),
    "a score stands at the first token": (
        "returns",
        "last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)",
        "last = mask[rows].argmax(1)",
        "a_score_stands_at_the_last_token",
    ),
    "scores are those of other rows": (
        "returns",
        "np.asarray(scores)[rows]",
        "np.asarray(scores)[: len(rows)][::-1]",
        "a_score_stands_at_the_last_token",
    ),
    "a score takes the place of the divergence": (
        "returns",
        "rewards[rows, last] +=",
        "rewards[rows, last] =",
        "a_score_stands_at_the_last_token",
    ),
    "the divergence is rewarded": (
        "returns",
        "else -coefficient * kept(kl, mask)",
        "else coefficient * kept(kl, mask)",
        "a_score_stands_at_the_last_token",
    ),
    "padding's divergence is in the rewards": (
        "returns",
        "-coefficient * kept(kl, mask)",
        "-coefficient * np.array(kl)",
        "padding_changes_no_bit",
    ),
    "answers that end are punished": (
        "returns",
        "np.where(ended, 0.0, align.missing_end)",
        "np.where(ended, align.missing_end, 0.0)",
        "what_of_a_score_counts",
    ),
    "a reward is clipped from above only": (
        "returns",
        "np.clip(settled, -align.reward_clip, align.reward_clip)",
        "np.minimum(settled, align.reward_clip)",
        "what_of_a_score_counts",
    ),
    "penalties are within the clip": (
        "returns",
        "return settled - np.where(ended, 0.0, align.missing_end)",
        "most = align.reward_clip or np.inf\n"
        "    return np.clip(settled - np.where(ended, 0.0, align.missing_end), -most, most)",
        "what_of_a_score_counts",
    ),
    "the buffer begins behind the limit": (
        "returns",
        "lengths - (align.tokens - align.overlong_buffer)",
        "lengths - align.tokens",
        "what_of_a_score_counts",
    ),
    "a short answer is rewarded": ("returns", "buffer, 0, 1)", "buffer, -1, 1)", "what_of_a_score_counts"),
    # generalized advantages
    "the value behind the last token is its own": (
        "advantages",
        "following = np.zeros(len(rewards)) if after is None",
        "following = values[:, -1].copy() if after is None",
        "gae_by_hand",
    ),
    "a cut answer isn't valued on": (
        "advantages",
        "else np.array(after, np.float64)",
        "else np.zeros(len(rewards))",
        "gae_by_hand",
    ),
    "lambda without gamma": ("advantages", "gamma * lam * later", "lam * later", "gae_by_hand"),
    "the value one place off": (
        "advantages",
        "gamma * following - values[:, place]",
        "gamma * values[:, place] - following",
        "gae_by_hand",
    ),
    "padding's values are bootstrapped": (
        "advantages",
        "following = np.where(here, values[:, place], following)",
        "following = values[:, place]",
        "tokens_of_others_inside_an_answer_are_passed_over",
    ),
    "padding discounts": (
        "advantages",
        "later = np.where(here, surprise + gamma * lam * later, later)",
        "later = surprise + gamma * lam * later",
        "tokens_of_others_inside_an_answer_are_passed_over",
    ),
    "NaN x 0 under the mask": (
        "sums",
        "np.where(mask, np.asarray(values, np.float64), 0.0)",
        "np.asarray(values, np.float64) * mask",
        "padding_changes_no_bit",
    ),
    # whitening and groups
    "the variance of all, not of a sample": ("sums", "/ (len(values) - 1)", "/ len(values)", "whitening_by_hand"),
    "padding is whitened along": ("advantages", "seen = whole[mask]", "seen = whole.ravel()", "whitening_by_hand"),
    "eps outside of the root": (
        "advantages",
        "(variance(seen) + WHITENING_EPS) ** -0.5",
        "1 / (variance(seen) ** 0.5 + WHITENING_EPS)",
        "whitening_by_hand",
    ),
    "whitening forgets the mean": (
        "advantages",
        "scaled if shift else scaled + middle",
        "scaled",
        "whitening_by_hand",
    ),
    "equal numbers are whitened to noise": (
        "sums",
        "    return least + total(values - least) / len(values)",
        "    return total(values) / len(values)",
        "whitening_of_equal_numbers_is_exactly_0",
    ),
    "a spread without eps": (
        "advantages",
        "** 0.5 + eps)",
        "** 0.5 + 1e-300)",
        "rounding_among_equal_rewards_stays_rounding",
    ),
    "the spread of the others": (
        "advantages",
        "apart / (variance(rewards[rows]) ** 0.5 + eps)",
        "apart / (np.array([variance(np.delete(rewards[rows], n)) for n in range(len(rows))]) ** 0.5 + 1e-6)",
        "rounding_among_equal_rewards_stays_rounding",
    ),
    "the mean of the others, undone": (
        "advantages",
        "len(rows) / (len(rows) - 1)",
        "(len(rows) - 1) / len(rows)",
        "rloo_is_less_the_mean_of_the_others",
    ),
    "a baseline in float32": (
        "advantages",
        "    rewards = np.asarray(rewards, np.float64)\n    counted = np.ones",
        "    rewards = np.asarray(rewards, np.float32).astype(np.float64)\n    counted = np.ones",
        "a_baseline_keeps_all_digits",
    ),
    "rows left out are in the mean": (
        "advantages",
        "np.flatnonzero((groups == group) & counted)",
        "np.flatnonzero(groups == group)",
        "rows_left_out_are_in_no_mean",
    ),
    "advantages of other rows": (
        "advantages",
        "np.flatnonzero((groups == group) & counted)",
        "np.arange(len(groups))[int(np.flatnonzero(groups == group)[0]) :][: int((groups == group).sum())]",
        "each_answer_is_compared_with_its_own_group",
    ),
    "a NaN is let through": (
        "advantages",
        "wrong = np.flatnonzero(~np.isfinite(rewards) & counted)",
        "wrong = np.flatnonzero(np.isinf(rewards) & counted)",
        "a_reward_that_is_no_number_is_named",
    ),
    # divergence
    "the other way round": ("kl", "    return distance\n", "    return -distance\n", "kl_by_hand"),
    "k3 of the other direction": (
        "kl",
        "np.expm1(-distance) + distance",
        "np.expm1(distance) - distance",
        "k1_and_k3_have_the_divergence_as_their_mean",
    ),
    "k3 by a difference of near numbers": (
        "kl",
        "np.expm1(-distance) + distance",
        "np.exp(-distance) - 1 + distance",
        "k3_of_what_is_near_keeps_its_digits",
    ),
    "k2 without its half": ("kl", "distance**2 / 2", "distance**2", "kl_by_hand"),
    "the divergence of an answer is a token's": (
        "kl",
        "mask)[rows])",
        "mask)[rows] / mask.sum(1)[rows])",
        "kl_of_an_answer_is_a_sum_and_of_answers_a_mean",
    ),
    "rows without a token are in the mean": (
        "kl",
        "mask)[rows])",
        "mask))",
        "kl_of_an_answer_is_a_sum_and_of_answers_a_mean",
    ),
    "the controller pushes away": (
        "kl",
        "kl / self.target - 1",
        "1 - kl / self.target",
        "the_coefficient_follows_the_divergence",
    ),
    "the controller knows no limit": (
        "kl",
        "min(max(kl / self.target - 1, -STEP), STEP)",
        "kl / self.target - 1",
        "the_coefficient_follows_the_divergence",
    ),
    "a NaN stays in the coefficient": (
        "kl",
        "or math.isnan(kl)",
        "",
        "the_coefficient_follows_the_divergence",
    ),
    # what tokens count
    "padding is in the divisor": (
        "shares",
        "divisors = lengths.sum()",
        "divisors = mask.size",
        "shares_by_hand",
    ),
    "the mean of each answer's mean by all rows": (
        "shares",
        "answers = int((lengths > 0).sum())",
        "answers = len(mask)",
        "rows_left_out_are_in_no_divisor",
    ),
    "rows left out stay in the divisor": (
        "shares",
        "lengths = part.sum(1)",
        "lengths = mask.sum(1)",
        "rows_left_out_are_in_no_divisor",
    ),
    "a sum over a batch, by its rows and tokens": (
        "shares",
        "divisors = lengths.sum()",
        "divisors = answers * lengths.sum()",
        "shares_sum_to_1",
    ),
    "the constant is the longest answer": (
        "shares",
        "divisors = answers * tokens",
        "divisors = answers * lengths.max()",
        "shares_by_hand",
    ),
    # a sampler that isn't the trainer
    "weights the other way round": (
        "corrections",
        "return kept(old, mask) - kept(sampled, mask)",
        "return kept(sampled, mask) - kept(old, mask)",
        "corrections_by_hand",
    ),
    "an answer's weight is its mean": (
        "corrections",
        "row_totals(logs, mask)[:, None]",
        "(row_totals(logs, mask) / np.maximum(mask.sum(1), 1))[:, None]",
        "corrections_by_hand",
    ),
    "what is beyond the cap stays": (
        "corrections",
        "(ratios >= low) & (ratios <= cap)",
        "(ratios >= low)",
        "corrections_by_hand",
    ),
    "what is masked is cut": (
        "corrections",
        "& (ratios <= cap), ratios, 0.0)",
        "& (ratios <= cap), ratios, cap)",
        "corrections_by_hand",
    ),
}
ROOMS = ("coretrain.alignment",)
BROKEN = (AssertionError, pytest.fail.Exception)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug):
    module, old, new, fact = BUGS[bug]
    with planted(f"coretrain.alignment.{module}", old, new, ROOMS), pytest.raises(BROKEN):
        FACTS[fact]()

"""Bugs planted in tasks, prompts and rewards: each changes one place, and a check with known answers must find it."""

from __future__ import annotations

import pytest

from coretrain.base.errors import UserError
from tests.support import known_rewards, known_tasks
from tests.support.planted import planted

FACTS = known_tasks.FACTS | known_rewards.FACTS
TASKS, PROMPTS, REWARDS = "coretrain.tasks", "coretrain.data.prompts", "coretrain.alignment.rewards"
BUGS = {
    # the module, what stands there, what it becomes, the check that finds it
    "sorted the wrong way round": (
        f"{TASKS}.strings", '"".join(sorted(given))', '"".join(sorted(given, reverse=True))', "sorting_by_hand",
    ),
    "wrong answers that are right": (f"{TASKS}.strings", "right[i] != right[j]", "True", "sorting_by_hand"),
    "an answer that was cut off counts": (
        f"{TASKS}.strings", "float(ended and completion ==", "float(completion ==",
        "the_right_answer_is_worth_1_and_wrong_ones_less",
    ),
    "right answers that begin well": (
        f"{TASKS}.strings", 'completion == fields["answer"]', 'fields["answer"].startswith(completion)',
        "the_right_answer_is_worth_1_and_wrong_ones_less",
    ),
    "a 9 is never drawn": (f"{TASKS}.draw", "self._word() * count >> 64", "self._word() * (count - 1) >> 64",
                           "sorting_by_hand"),
    "the seed is forgotten": (f"{TASKS}.task", "Draw(self.name, self.seed, index", "Draw(self.name, index",
                              "rows_depend_on_seed_and_number_alone"),
    "one stream for all rows": (f"{TASKS}.task", "self.seed, index, purpose", "self.seed, purpose",
                                "rows_depend_on_seed_and_number_alone"),
    "numbers of another block": (f"{TASKS}.draw", "self._block = 0", "self._block = 1",
                                 "rows_depend_on_seed_and_number_alone"),
    "words come again": (f"{TASKS}.draw", "self._block += 1", "self._block += 0", "rows_are_the_same_everywhere"),
    "only neighbours are swapped": (
        f"{TASKS}.strings", "right[i] != right[j]]", "right[i] != right[j] and i - j == 1]", "sorting_by_hand",
    ),
    "numbers below 0": (f"{TASKS}.sums", "and right >= off", "and True", "wrong_sums_are_of_both_kinds"),
    "parts of one name": (f"{REWARDS}.reward", "while free in taken", "while False", "parts_are_named"),
    "right and wrong the other way round": (
        f"{TASKS}.task", "said(wrong if errs else right)", "said(right if errs else wrong)",
        "a_share_of_worked_answers_is_wrong",
    ),
    "labels the other way round": (f"{TASKS}.task", '"label": not errs', '"label": errs',
                                   "a_share_of_worked_answers_is_wrong"),
    "all worked answers are right": (f"{TASKS}.task", ".fraction() < self.wrong", ".fraction() < 0.0",
                                     "a_share_of_worked_answers_is_wrong"),
    "the first number that is said": (f"{TASKS}.sums", "said[-1]", "said[0]", "sums_by_hand"),
    "digits of all scripts": (f"{TASKS}.sums", r'ALONE = re.compile(r"\s*[0-9]+\s*")',
                              r'ALONE = re.compile(r"\s*\d+\s*")', "sums_by_hand"),
    "the form is right where a number is somewhere": (f"{TASKS}.sums", "ALONE.fullmatch", "ALONE.search",
                                                      "sums_by_hand"),
    "the form is right without an end": (f"{TASKS}.sums", "(ended and ALONE", "(True and ALONE", "sums_by_hand"),
    "whole points": (f"{TASKS}.sums", '"format": 0.5 *', '"format": 1.0 *', "sums_by_hand"),
    "worked answers are split by answer": (
        "coretrain.data.chat", "key = _asked if is_task(name) else None", "key = None",
        "all_forms_hold_out_the_same_prompts",
    ),
    "prompts are split with their fields": (f"{PROMPTS}.encode", "split_key=_split_key", "split_key=None",
                                            "all_forms_hold_out_the_same_prompts"),
    "the answer's text is in the prompt": (f"{PROMPTS}.rows", "Conversation(whole.messages[:-1]",
                                           "Conversation(whole.messages[:]", "prompts_and_fields_come_back"),
    "the first byte of the fields is a token": (f"{PROMPTS}.encode", "facts >= vocab", "facts > vocab + 0x7b",
                                                "prompts_and_fields_come_back"),
    "fields with null are dropped": (
        f"{PROMPTS}.rows", '{"prompt": asked, **row}',
        '{"prompt": asked, **{k: v for k, v in row.items() if v and not isinstance(v, dict)}}',
        "prompts_and_fields_come_back",
    ),
    "end tokens of the turn are forgotten": (
        f"{PROMPTS}.open", "tuple(dict.fromkeys((*self.tokenizer.ends, data.template.end())))", "()",
        "prompts_and_fields_come_back",
    ),
    "every rollout asks the same": (f"{PROMPTS}.open", "np.arange(rollout * count, (rollout + 1) * count)",
                                    "np.arange(count)", "rollouts_walk_through_all_prompts"),
    "rollouts overlap": (f"{PROMPTS}.open", "np.arange(rollout * count, (rollout + 1) * count)",
                         "np.arange(rollout, rollout + count)", "rollouts_walk_through_all_prompts"),
    "held-out prompts are trained on": (f"{PROMPTS}.open", "for split in self._train]\n        rows",
                                        "for split in self._train + self._held_out][:1]\n        windows = [sum(map(len"
                                        ", self._train + self._held_out))]\n        rows",
                                        "rollouts_walk_through_all_prompts"),
    "the seed of the order is forgotten": (f"{PROMPTS}.open", "self.weights, self.fingerprint, self.seed)",
                                           "self.weights, self.fingerprint, 0)", "rollouts_walk_through_all_prompts"),
    "prompts in the order of the file": (f"{PROMPTS}.open", "rows[:, 1]\n",
                                         "np.sort(rows[:, 1])\n", "rollouts_walk_through_all_prompts"),
    "training prompts are validated": (f"{PROMPTS}.open", "self._starts[len(self._train) + parts[there]]",
                                       "self._starts[parts[there]]", "rollouts_walk_through_all_prompts"),
    "the second source's prompts are the first's": (f"{PROMPTS}.open", "self._starts[rows[:, 0]] +", "",
                                                    "mixtures_are_asked_by_weight"),
    "the head of the answer is missing": (
        "coretrain.tokenizers.chat_template", "asked = self.render(hidden, prompt=True)",
        "asked = self.render(hidden)", "messages_are_asked_by_the_template",
    ),
    "special tokens of users are special": (
        "coretrain.tokenizers.chat_template", "return self.ids(asked, mark)",
        "return self.ids(asked.replace(mark + chr(FIRST_PLACEHOLDER), '<|endoftext|>') if mark else asked)",
        "messages_are_asked_by_the_template",
    ),
    "no room for the answer": (f"{PROMPTS}.encode", "most = self.context - self.answer", "most = self.context",
                               "a_prompt_leaves_room_for_its_answer"),
    "one token of room too much": (f"{PROMPTS}.encode", "len(ids) > most", "len(ids) >= most",
                                   "a_prompt_leaves_room_for_its_answer"),
    "rewards are whole numbers": (f"{REWARDS}.reward", "total = total + weight * value",
                                  "total = (total + weight * value).astype(int)", "rewards_are_fractions"),
    "rewards in float32": (f"{REWARDS}.reward", "total = total + weight * value",
                           "total = (total + weight * value).astype(np.float32)", "rewards_are_fractions"),
    "weights are forgotten": (f"{REWARDS}.reward", "total + weight * value", "total + value", "rewards_are_fractions"),
    "a part is told with its weight": (f"{REWARDS}.reward", "parts[_free(term.name, parts)] = value",
                                       "parts[_free(term.name, parts)] = weight * value", "rewards_are_fractions"),
    "only the last term counts": (f"{REWARDS}.reward", "total = total + weight * value", "total = weight * value",
                                  "rewards_are_fractions"),
    "a length is punished at the limit alone": (f"{REWARDS}.rules", "max(over / self.buffer, 0.0)",
                                                "max(over // self.buffer, 0.0)", "rules_by_hand"),
    "a length is rewarded": (f"{REWARDS}.rules", "return -min(", "return min(", "rules_by_hand"),
    "short answers are rewarded": (f"{REWARDS}.rules", "max(over / self.buffer, 0.0)", "over / self.buffer",
                                   "rules_by_hand"),
    "a length without its end token": (f"{REWARDS}.rules", "over = tokens -", "over = tokens - 1 -", "rules_by_hand"),
    "a form that begins right": (f"{REWARDS}.rules", "re.fullmatch(self.pattern", "re.match(self.pattern",
                                 "rules_by_hand"),
    "a number as an answer is never said": (
        f"{REWARDS}.single", '{**fields, "answer": str(fields["answer"])}', "fields", "rules_by_hand",
    ),
    "thousands are two numbers": (f"{REWARDS}.rules", "[0-9][0-9,]*", "[0-9]+", "rules_by_hand"),
    "messages are answered by texts": (f"{REWARDS}.calling", "if listed else one", "if False else one",
                                       "a_function_gets_lists_by_name"),
    "fields of the first row alone": (f"{REWARDS}.calling", "for one in answers for name in one",
                                      "for one in answers[:1] for name in one", "a_function_gets_lists_by_name"),
    "a number that isn't finite counts": (f"{REWARDS}.reward", "if not np.isfinite(values).all():",
                                          "if np.isnan(values).any():", "numbers_are_held_to_their_answers"),
    "nan is taken for 0": (f"{REWARDS}.reward", "    if values.shape != (len(answers),):",
                           "    values = np.nan_to_num(values)\n    if values.shape != (len(answers),):",
                           "numbers_are_held_to_their_answers"),
    "too many numbers are cut": (f"{REWARDS}.reward", "    if values.shape != (len(answers),):",
                                 "    values = values[: len(answers)]\n    if values.shape != (len(answers),):",
                                 "numbers_are_held_to_their_answers"),
    "the wrong answer is named": (f"{REWARDS}.reward", "described(answers[wrong])", "described(answers[0])",
                                  "numbers_are_held_to_their_answers"),
    "signs of an expression split it": (f"{REWARDS}.words", r're.compile(r"\s\+\s")', r're.compile(r"\+")',
                                        "words_of_a_sum"),
}  # fmt: skip
ROOMS = ("coretrain.alignment", "coretrain.tasks", "coretrain.data", "coretrain.tokenizers.chat_template")
BROKEN = (AssertionError, ValueError, UserError)


@pytest.mark.parametrize("fact", FACTS)
def test_nothing_is_found_where_no_bug_is(fact, tmp_path):
    FACTS[fact](tmp_path)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_noticed(bug, tmp_path):
    module, old, new, fact = BUGS[bug]
    with planted(module, old, new, ROOMS), pytest.raises(BROKEN):
        FACTS[fact](tmp_path)

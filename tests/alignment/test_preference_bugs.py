"""Bugs planted in what makes batches of preferences: each is found by a check with known answers."""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest

from coretrain.base.errors import UserError
from coretrain.tokenizers.jinja import TemplateError
from tests.support import pairs_probes, preference_probes
from tests.support.planted import planted

PROBES = preference_probes.PROBES | pairs_probes.PROBES
FORMS, ROWS, ENCODE, SPLIT, OPEN = (
    f"coretrain.data.preferences.{name}" for name in ("forms", "rows", "encode", "split", "open")
)
PAIRS, KEPT = "coretrain.alignment.pairs", "coretrain.alignment.kept"
ROOMS = ("coretrain.data.preferences", "coretrain.alignment", "coretrain.data.open", "coretrain.data.prepare")


FOUND = (AssertionError, UserError, TemplateError, ValueError, pytest.fail.Exception)
"""What a check may end with: anything else is a mistake of this file."""


class Bug(NamedTuple):
    """What stands in a module, what stands there instead, and the check that finds it."""

    module: str
    old: str
    new: str
    probe: str


BUGS = {
    "rejected comes first in OpenAI's form": Bug(
        ROWS,
        '("preferred_output", "non_preferred_output")',
        '("non_preferred_output", "preferred_output")',
        "every_form_comes_to_the_same_pair",
    ),
    "HH-RLHF's dialogue is one question": Bug(
        FORMS,
        "given = tuple(map(_turns, given))",
        'given = tuple([{"role": "user", "content": ""}, _turns(one)[-1]] for one in given)',
        "every_form_comes_to_the_same_pair",
    ),
    "the common beginning has one message less": Bug(
        FORMS,
        "prompt, answers = given[0][:common]",
        "common = max(1, common - 1)\n    prompt, answers = given[0][:common]",
        "the_prompt_is_one_in_both_answers",
    ),
    "an answer that both have is learnt": Bug(
        FORMS,
        "count += 1\n    return count",
        "count += 1\n    return min(count, 1)",
        "the_prompt_is_one_in_both_answers",
    ),
    "the prompt is learnt": Bug(
        SPLIT,
        "ids, learnt, stop = facts // ID, facts & LEARNT, at + len(facts)",
        "ids, learnt, stop = facts // ID, facts >= 0, at + len(facts)",
        "a_row_by_hand",
    ),
    "the end token is masked": Bug(
        SPLIT,
        "np.where(learnt[1:], ids[1:], IGNORED)",
        "np.where(learnt[1:] * (ids[1:] != 256), ids[1:], IGNORED)",
        "a_row_by_hand",
    ),
    "labels are one place late": Bug(
        SPLIT,
        "labels[at : stop - 1] = np.where(learnt[1:], ids[1:], IGNORED)",
        "labels[at:stop] = np.where(learnt, ids, IGNORED)",
        "a_row_by_hand",
    ),
    "the end token is no input": Bug(
        SPLIT,
        "segments[at:stop] = number",
        "segments[at : stop - 1] = number",
        "a_row_by_hand",
    ),
    "positions go on": Bug(
        SPLIT,
        "positions[at:stop] = np.arange(len(facts))",
        "positions[at:stop] = np.arange(at, stop)",
        "a_row_by_hand",
    ),
    "what is left of a row belongs to its first sequence": Bug(
        SPLIT,
        "labels[:], segments[:] = IGNORED, -1",
        "labels[:], segments[:] = IGNORED, 0",
        "a_row_by_hand",
    ),
    "the rejected answer stands first in a row": Bug(
        SPLIT,
        "for answer in both)",
        "for answer in both[::-1])",
        "a_row_by_hand",
    ),
    "one answer of each is learnt behind the other's prompt": Bug(
        SPLIT,
        "return found[:prompt], found[prompt : prompt + first], found[prompt + first :]",
        "return found[:prompt], found[prompt : prompt + first - 1], found[prompt + first - 1 :]",
        "a_row_by_hand",
    ),
    "prompt and answer are tokenized as one": Bug(
        ENCODE,
        "self.template.sample(talk, apart=True)",
        "self.template.sample(talk)",
        "no_token_crosses_the_boundary",
    ),
    "the split is by the whole pair": Bug(
        ENCODE,
        "return document if _is_misfit(document) else Preference.load(document).prompt()",
        "return document",
        "a_prompt_is_in_one_split_alone",
    ),
    "the split is by the system text alone": Bug(
        ROWS,
        "self.answers[0].messages[: self.asked]",
        "self.answers[0].messages[: self.asked - 1]",
        "a_prompt_is_in_one_split_alone",
    ),
    "a long pair is cut": Bug(
        ENCODE,
        "if count > self.context:",
        "half = self.context // 2\n"
        "        samples = [(ids[:half], learnt[:half]) for ids, learnt in samples]\n"
        "        if False:",
        "nothing_is_cut_short",
    ),
    "a pair that just fits is refused": Bug(
        ENCODE, "if count > self.context:", "if count >= self.context:", "nothing_is_cut_short"
    ),
    "a pair that is too long is dropped without a word": Bug(
        SPLIT,
        'return f"; rows dropped:',
        'return "" and f"; rows dropped:',
        "nothing_is_cut_short",
    ),
    "equal answers are taken": Bug(
        ROWS,
        "if same(*(talk.messages for talk in talks)):",
        "if False:",
        "pairs_that_cannot_be_used_are_counted",
    ),
    "scores the wrong way round are taken": Bug(
        ROWS,
        "row[scores[0]] < row[scores[1]]",
        "row[scores[0]] > row[scores[1]]",
        "pairs_that_cannot_be_used_are_counted",
    ),
    "prompts that differ are taken": Bug(
        FORMS,
        'if not prompt or not all(answer and _role(answer[0]) == "assistant" for answer in answers):',
        "if not all(answer for answer in answers):",
        "pairs_that_cannot_be_used_are_counted",
    ),
    "planes are as wide as their split's fullest row": Bug(
        OPEN,
        "slots = max(split.slots for split in splits)",
        "slots = None",
        "planes_are_as_wide_in_every_row",
    ),
    "margins are of the row's first pair": Bug(
        SPLIT,
        "[self.margin(pair) or 0.0 for pair in pairs]",
        "[self.margin(pairs[0]) or 0.0 for pair in pairs]",
        "margins_stand_beside_their_pairs",
    ),
    "margins are rounded": Bug(
        ENCODE,
        'struct.pack(">d", margin)',
        'struct.pack(">d", round(margin, 3))',
        "margins_stand_beside_their_pairs",
    ),
    "a row counts as one": Bug(
        PAIRS,
        'np.asarray(planes["pair_share"], np.float64) / total',
        '(np.asarray(planes["pair_share"]) > 0) / len(batch) / (planes["pair_share"].sum(1, keepdims=True))',
        "all_pairs_count_alike",
    ),
    "the last pair of a row isn't counted": Bug(
        SPLIT,
        "row = row.with_planes(pair_share=self.plane([1.0] * len(pairs)))",
        "row = row.with_planes(pair_share=self.plane([1.0] * max(1, len(pairs) - 1)))",
        "all_pairs_count_alike",
    ),
    "all slots count": Bug(
        PAIRS,
        "return float(np.sum(planes[name] > 0))",
        "return float(np.size(planes[name]))",
        "all_pairs_count_alike",
    ),
    "the reference is of the row beside": Bug(
        KEPT,
        "plane[place, learnt] = self._kept[first]",
        "plane[place, learnt] = np.resize(self._kept[max(self._kept) if first else first], learnt.sum())",
        "each_row_is_scored_once_under_the_reference",
    ),
    "the reference is of the row with this place in the data": Bug(
        KEPT,
        "self._kept[first] = fresh[place, batch.labels[place] != IGNORED]",
        "there = batch.labels != IGNORED\n"
        "                self._kept[first] = np.resize(fresh[place - 1, there[place - 1]], there[place].sum())",
        "each_row_is_scored_once_under_the_reference",
    ),
    "each epoch is scored again": Bug(
        KEPT,
        "fresh = self._keep(update, batch) if (firsts >= known).any() else None",
        "fresh = self._keep(update, batch)",
        "each_row_is_scored_once_under_the_reference",
    ),
    "a resumed run scores rows with the batch where it met them": Bug(
        KEPT,
        "self._keep(first // len(batch), self.make(first // len(batch)))",
        "now, at = scored(self.score, batch), list(firsts).index(first)\n"
        "                self._kept[first] = now[at, batch.labels[at] != IGNORED]",
        "each_row_is_scored_once_under_the_reference",
    ),
    "memory has no limit": Bug(
        KEPT,
        "self.rows_kept = most //",
        "self.rows_kept = 2**40 + most //",
        "each_row_is_scored_once_under_the_reference",
    ),
    "a row's first place is its last": Bug(
        KEPT,
        "np.minimum.at(first, rows[mine, 1], places[mine])",
        "first[rows[mine, 1]] = places[mine]",
        "the_reference_of_a_mixture",
    ),
    "rows of a mixture's parts are one": Bug(
        KEPT,
        "mine = rows[:, 0] == part",
        "mine = rows[:, 1] < len(first)",
        "the_reference_of_a_mixture",
    ),
    "the reference of mismatched answers is that of the answers": Bug(
        PAIRS,
        "self.kept_mismatched = self._keeping(self.mismatched, most)",
        "self.kept_mismatched = self._keeping(self.updates.batch, most)",
        "the_baseline_of_kto_by_hand",
    ),
    "the baseline is of the answers themselves": Bug(
        SPLIT,
        "fits & (kinds != kinds[others]), others, found)",
        "fits, numbers, found)",
        "the_baseline_of_kto_by_hand",
    ),
    "the baseline may be negative": Bug(
        PAIRS,
        "return max(0.0, distance / answers)",
        "return (distance / answers)",
        "the_baseline_of_kto_by_hand",
    ),
    "the baseline is a token's": Bug(
        PAIRS,
        "answers += count(other)",
        "answers += float(learnt.sum())",
        "the_baseline_of_kto_by_hand",
    ),
    "the baseline is the reference's distance from the policy": Bug(
        PAIRS,
        "(policy[learnt] - reference[learnt])",
        "(reference[learnt] - policy[learnt])",
        "the_baseline_of_kto_by_hand",
    ),
    "weights of good and bad answers are swapped": Bug(
        PAIRS,
        "self.align.desirable_weight, self.align.undesirable_weight",
        "self.align.undesirable_weight, self.align.desirable_weight",
        "the_baseline_of_kto_by_hand",
    ),
    "good is bad": Bug(
        ENCODE,
        "else [not one.value]",
        "else [one.value]",
        "labels_stand_beside_their_answers",
    ),
    "labels are those of the next answer": Bug(
        SPLIT,
        "good = [float(not self.facts(one)[1][0] & WORSE) for one in answers]",
        "good = [float(not self.facts(one)[1][0] & WORSE) for one in (*answers[1:], answers[0])]",
        "labels_stand_beside_their_answers",
    ),
    "another answer to the same prompt counts as mismatched": Bug(
        SPLIT,
        "(kinds != kinds[others])",
        "(kinds == kinds)",
        "mismatched_answers_are_others",
    ),
    "a mismatched answer is longer than a row": Bug(
        SPLIT,
        "lines[:, PROMPT] + lines[others, FIRST] <= self.context",
        "lines[:, PROMPT] + lines[others, FIRST] <= 2 * self.context",
        "mismatched_answers_are_others",
    ),
    "rows have no room for mismatched answers": Bug(
        SPLIT,
        "return np.maximum(self.tokens_used, others)",
        "return self.tokens_used",
        "mismatched_answers_are_others",
    ),
    "each batch of the validation is a whole": Bug(
        PAIRS,
        "total = sum(map(count, batches))",
        "total = count(batches[0])",
        "validation_is_a_mean_over_its_pairs",
    ),
    "the validation is scored each time": Bug(
        PAIRS,
        "    @cached_property\n    def _validation(self)",
        "    @property\n    def _validation(self)",
        "validation_is_a_mean_over_its_pairs",
    ),
}


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Nothing here must outlive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("name", list(BUGS))
def test_a_bug_is_found(name, tmp_path):
    module, old, new, probe = BUGS[name]
    with planted(module, old, new, ROOMS), pytest.raises(FOUND):
        PROBES[probe](tmp_path)

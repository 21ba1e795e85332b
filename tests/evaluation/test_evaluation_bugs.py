"""Bugs planted in evaluation: each is found by a check with known answers."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from coretrain.base.errors import UserError
from tests.support.evaluation_figures import PROBES
from tests.support.planted import planted

ASK, BRANCHES, CORE, EVALUATE, INTERVALS, SCORER, TASK, TEXT, COMPARE = (
    f"coretrain.evaluation.{name}"
    for name in ("ask", "branches", "core", "evaluate", "intervals", "scorer", "task", "text", "compare")
)
CONTRACT = "coretrain.contract.branches"
FOUND = (AssertionError, UserError, IndexError, ValueError, pytest.fail.Exception)


class Bug(NamedTuple):
    """What stands in a module, what stands there instead, and the check that finds it."""

    module: str
    old: str
    new: str
    probe: str


BUGS = {
    "labels shifted by one": Bug(
        SCORER,
        "labels[place, end - scored : end] = ids[-scored:]",
        "labels[place, end - scored : end] = ids[-scored - 1 : -1]",
        "scores_are_sums_of_the_continuation",
    ),
    "scores read one place early": Bug(
        SCORER,
        "row[len(ids) - 1 - scored : len(ids) - 1]",
        "row[len(ids) - 2 - scored : len(ids) - 2]",
        "scores_are_sums_of_the_continuation",
    ),
    "the first id isn't scored": Bug(
        SCORER,
        "_read(row[len(ids) - 1 - scored :",
        "_read(row[len(ids) - scored :",
        "scores_are_sums_of_the_continuation",
    ),
    "answers in the order of their length": Bug(
        SCORER,
        "return [found[one] for one in asked]",
        "return list(found.values())",
        "scores_are_sums_of_the_continuation",
    ),
    "every row in a shape of its own": Bug(
        SCORER,
        "    return -(-tokens // step) * step",
        "    return tokens",
        "scores_are_sums_of_the_continuation",
    ),
    "rows padded to the context": Bug(
        SCORER,
        "width = widened(length(lines[start]))",
        "width = self.context",
        "scores_are_sums_of_the_continuation",
    ),
    "labels of a branch shifted by one": Bug(
        BRANCHES, "labels[part] = ids[-scored:]", "labels[part] = ids[-scored - 1 : -1]", "beginnings_are_computed_once"
    ),
    "endings read where the first one begins": Bug(
        BRANCHES, "at - shared + start", "at", "beginnings_are_computed_once"
    ),
    "endings' positions go on from one another": Bug(
        BRANCHES,
        "np.arange(shared, len(ids) - 1), number",
        "np.arange(start, stop), number",
        "beginnings_are_computed_once",
    ),
    "endings see one another": Bug(
        BRANCHES,
        "np.arange(shared, len(ids) - 1), number",
        "np.arange(shared, len(ids) - 1), 1",
        "beginnings_are_computed_once",
    ),
    "the last id of the beginning isn't shared": Bug(
        BRANCHES, "np.where(at < shared", "np.where(at < shared - 1", "beginnings_are_computed_once"
    ),
    "groups that cost more": Bug(BRANCHES, "spared * 4 > alone.width and", "", "beginnings_are_computed_once"),
    "nothing is shared": Bug(BRANCHES, "and joined.width <= most", "and False", "beginnings_are_computed_once"),
    "what is lost by sharing less isn't counted": Bug(
        BRANCHES, "group.width + lost + len(ids)", "group.width + len(ids)", "beginnings_are_computed_once"
    ),
    "groups of any width": Bug(BRANCHES, "and joined.width <= most", "", "beginnings_are_computed_once"),
    "scores of groups in the order of the list": Bug(
        SCORER,
        "found[place] = _read(scores[part], rows[place][1])",
        "found[len(found)] = _read(scores[part], rows[place][1])",
        "beginnings_are_computed_once",
    ),
    "any ending is seen by those behind it": Bug(
        CONTRACT, "(other == one)", "(other <= one)", "beginnings_are_computed_once"
    ),
    "what comes later is seen": Bug(
        CONTRACT, "np.tri(T, dtype=bool)", "np.tri(T, k=1, dtype=bool)", "beginnings_are_computed_once"
    ),
    "truncated from the right": Bug(
        TEXT,
        "(*asked.context, *asked.ids)[-(context + 1) :]",
        "(*asked.context, *asked.ids)[: context + 1]",
        "what_is_too_long_loses_its_beginning",
    ),
    "one id less than the context": Bug(
        TEXT,
        "(*asked.context, *asked.ids)[-(context + 1) :]",
        "(*asked.context, *asked.ids)[-context:]",
        "what_is_too_long_loses_its_beginning",
    ),
    "any likeliest id is enough": Bug(SCORER, "row[:, 1].all()", "row[:, 1].any()", "greedy_means_every_id"),
    "greedy by the last id": Bug(SCORER, "row[:, 1].all()", "row[-1, 1]", "greedy_means_every_id"),
    "blanks stay with the context": Bug(TEXT, "    if blanks:", "    if False:", "a_pair_is_cut_where_its_tokens_say"),
    "context and answer encoded apart": Bug(
        TEXT,
        "_ids(tokenizer, context + continuation), len(",
        "_ids(tokenizer, context) + _ids(tokenizer, continuation), len(",
        "a_pair_is_cut_where_its_tokens_say",
    ),
    "a merged answer is empty": Bug(
        TEXT,
        "start = min(start, len(whole) - 1)",
        "start = min(start, len(whole))",
        "a_pair_is_cut_where_its_tokens_say",
    ),
    "the beginning stands twice": Bug(
        TEXT,
        "return Continuation((beginning(tokenizer), *whole[:start]), whole[start:])",
        "return Continuation((beginning(tokenizer), beginning(tokenizer), *whole[:start]), whole[start:])",
        "a_pair_is_cut_where_its_tokens_say",
    ),
    "pieces without what is before them": Bug(
        TEXT,
        "max(0, stop - context - 1)",
        "start - 1",
        "text_is_scored_once_in_windows",
    ),
    "pieces overlap": Bug(
        TEXT,
        "for start in range(1, len(ids), context)",
        "for start in range(1, len(ids), context - 1)",
        "text_is_scored_once_in_windows",
    ),
    "a token for a byte": Bug(
        EVALUATE,
        "sum(len(tokenizer.token_bytes(token)) for token in piece.ids)",
        "len(piece.ids) - 1",
        "bytes_are_those_of_the_text",
    ),
    "nats for bits": Bug(
        EVALUATE, "ratio(nats / math.log(2), sizes)", "ratio(nats, sizes)", "bytes_are_those_of_the_text"
    ),
    "the unlikeliest choice": Bug(
        ASK, "int(values.argmax())", "int(values.argmin())", "the_choice_is_the_likeliest_by_each_measure"
    ),
    "tokens for characters": Bug(
        ASK,
        "sums / [max(1, len(choice)) for choice in row.choices]",
        "by['acc_mean']",
        "the_choice_is_the_likeliest_by_each_measure",
    ),
    "characters for bytes": Bug(
        ASK,
        'len(choice.encode(errors="replace"))',
        "len(choice)",
        "the_choice_is_the_likeliest_by_each_measure",
    ),
    "the unconditional is added": Bug(
        ASK,
        "sums - [one.logprob for one in scored[count:]]",
        "sums + [one.logprob for one in scored[count:]]",
        "the_choice_is_the_likeliest_by_each_measure",
    ),
    "the row among its own worked ones": Bug(
        ASK,
        "if task.examples or one.number != row.number",
        "if True",
        "worked_rows_are_others",
    ),
    "the same worked rows for all": Bug(
        ASK,
        "random.Random(task.settings.seed + row.number - 1)",
        "random.Random(task.settings.seed)",
        "worked_rows_are_others",
    ),
    "worked rows answered wrong": Bug(
        TASK,
        "options, right, (options[right],))",
        "options, right, (options[0],))",
        "worked_rows_are_others",
    ),
    "a schema scores its contexts": Bug(
        ASK,
        "return [(before + choice, s.delimiter + row.answers[0]) for choice in row.choices]",
        "return [(before + row.answers[0], s.delimiter + choice) for choice in row.choices]",
        "a_schema_scores_what_follows",
    ),
    "an answer keeps its end": Bug(
        SCORER,
        "return text[: min(places)]",
        "return text[: min(places) + 1]",
        "generated_answers_end_where_they_should",
    ),
    "answers are made to their last token": Bug(
        SCORER, "return any(stop in text for stop in until)", "return False", "answers_are_not_made_beyond_their_ends"
    ),
    "an answer is over after its first piece": Bug(
        SCORER, "len(ids) == piece for ids", "False for ids", "answers_are_not_made_beyond_their_ends"
    ),
    "each piece begins anew": Bug(
        SCORER, "prompts[row] + answers[row] for", "prompts[row] for", "answers_are_not_made_beyond_their_ends"
    ),
    "a row's end ends another": Bug(
        SCORER,
        "self._said(answers[row], ends_at[row])",
        "self._said(answers[row], ends_at[0])",
        "answers_are_not_made_beyond_their_ends",
    ),
    "an answer is longer than asked for": Bug(
        SCORER, "piece = min(piece, tokens - done)", "pass", "answers_are_not_made_beyond_their_ends"
    ),
    "an answer ends at the last": Bug(SCORER, "min(places)", "max(places)", "generated_answers_end_where_they_should"),
    "capitals count": Bug(ASK, "text.lower()", "text", "generated_answers_end_where_they_should"),
    "half an interval": Bug(INTERVALS, "(0.025, 0.975)", "(0.25, 0.75)", "intervals_hold_what_they_promise"),
    "a mean of ratios": Bug(
        INTERVALS,
        "above[drawn].sum(1) / below[drawn].sum(1)",
        "(above[drawn] / below[drawn]).mean(1) * 1.5",
        "intervals_hold_what_they_promise",
    ),
    "an interval that isn't Wilson's": Bug(INTERVALS, "z * z / (4 * n * n)", "0", "intervals_hold_what_they_promise"),
    "less is worse": Bug(
        COMPARE, "(before.nats - after.nats)", "(after.nats - before.nats)", "a_gain_is_told_from_forgetting"
    ),
    "others' questions are compared": Bug(
        COMPARE, "if after.key != before.key:", "if False:", "a_gain_is_told_from_forgetting"
    ),
    "a key without its settings": Bug(EVALUATE, "self.task.settings, ", "", "a_gain_is_told_from_forgetting"),
    "CORE's rows in their own order": Bug(
        CORE, "random.Random(1337).shuffle(rows)", "pass", "core_is_scored_as_nanochat_scores_it"
    ),
    "CORE without guessing": Bug(
        EVALUATE,
        "(self.value.value - self.task.chance) / (1 - self.task.chance)",
        "self.value.value",
        "core_is_scored_as_nanochat_scores_it",
    ),
    "CORE by sums": Bug(CORE, '("choice", "acc_mean")', '("choice", "acc")', "core_is_scored_as_nanochat_scores_it"),
    "CORE without a beginning": Bug(CORE, "begin=True", "begin=False", "core_is_scored_as_nanochat_scores_it"),
    "CORE's context with its blanks": Bug(
        CORE,
        "question=row.question.strip()",
        "question=row.question + ' '",
        "core_is_scored_as_nanochat_scores_it",
    ),
    "a schema's end is one id shorter": Bug(
        TEXT,
        "len(row) - shared if from_end",
        "len(row) - shared + 1 if from_end",
        "core_is_scored_as_nanochat_scores_it",
    ),
    "what choices share is scored too": Bug(
        TEXT,
        "else shared for row in rows]",
        "else max(1, shared - 2) for row in rows]",
        "core_is_scored_as_nanochat_scores_it",
    ),
}


@pytest.mark.parametrize("name", list(BUGS))
def test_a_bug_is_found(name, tmp_path):
    module, old, new, probe = BUGS[name]
    with planted(module, old, new, ("coretrain.evaluation", CONTRACT)), pytest.raises(FOUND):
        PROBES[probe](tmp_path)

"""Rewards of one answer at a time, by rules and by tasks: the same whether in this process or in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coretrain.alignment.rewards.rules import RULES, Rule
from coretrain.base.errors import UserError
from coretrain.tasks.registry import open_task, with_options
from coretrain.tasks.task import Task


class Single:
    """A rule or a task, which scores each answer by itself."""

    def __init__(self, word: str, scores: Rule | Task) -> None:
        self.word, self.scores = word, scores
        self.name = scores.name
        self.foreign = scores.foreign
        self.needs = scores.needs if isinstance(scores, Rule) else ("answer",)

    def parts(self, answers: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Named parts of the answers' scores. Raises `UserError` where a row lacks a field that is needed."""
        found = [self._parts(one) for one in answers]
        names = list(dict.fromkeys(name for one in found for name in one))
        return {name: [float(one.get(name, 0.0)) for one in found] for name in names}

    def _parts(self, one: Mapping[str, Any]) -> dict[str, float]:
        fields, completion, ended = one["fields"], one["completion"], one["ended"]
        for name in self.needs:
            if fields.get(name) is None:
                there = ", ".join(fields)
                raise UserError(
                    "alignment/reward-field-missing",
                    f"reward {self.word} needs the field {name}, and a row of data.source has only {there}: give it to "
                    "each row, or name another field by ?field=",
                )
        if isinstance(self.scores, Rule):
            return {self.name: self.scores.value(completion, fields, ended, one["tokens"])}
        return self.scores.parts(completion, {**fields, "answer": str(fields["answer"])}, ended)  # a row may have 7


def single_of(word: str) -> Single:
    """The rule or task that a word names. Raises `UserError` where its options are wrong, or there is none."""
    name, _, query = word.partition("?")
    if name in RULES:
        return Single(word, with_options(RULES[name], f"reward {name}", word, query))
    return Single(word, open_task(word))

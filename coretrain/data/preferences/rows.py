"""Rows of preferences: a pair of answers, or an answer with a label; which fields are read, and which rows are refused.

What a row holds besides its answers (tools, documents, a system text, marks of messages) is read as a row of
conversations is (`chat_rows.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.data.chat_rows import MISFITS as OF_CONVERSATIONS
from coretrain.data.chat_rows import REFUSED, conversation_of, unread_fields
from coretrain.data.preferences.forms import LEAVE, Asked, asked, plain, same
from coretrain.tokenizers.conversation import Conversation

PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
"""Names of the two answers, the better one first."""
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))
"""Names of what somebody gave the two answers."""
ANSWERS = ("completion", "messages")
"""Names of a labelled answer; messages are a whole conversation."""
MARGIN, LABEL = "margin", "label"
BESIDE = ("system", "tools", "documents", "chat_template_kwargs")
"""Fields that are read as those of a conversation."""
MISFITS = OF_CONVERSATIONS | {
    f"data/{code}"
    for code in (
        "answer-not-text", "answers-of-two-kinds", "pair-prompts-differ", "pair-prompt-not-theirs", "pair-prompt-empty",
        "pair-answers-equal", "pair-margin-unusable", "pair-scores-contradict", "label-unusable",
    )
}  # fmt: skip
"""Faults of a single row, which `data.misfits` = drop leaves out."""


@dataclass(frozen=True)
class Preference:
    """One row: its answers, each with the prompt before it, and what is known of them."""

    answers: tuple[Conversation, ...]
    """The chosen and the rejected one; of a labelled row the only one."""
    asked: int
    """Messages of each that are the prompt."""
    value: float | bool | None = None
    """The margin of a pair, if it has one; the label of an answer."""

    def dump(self) -> str:
        """As one line of JSON. Raises TypeError for values that JSON hasn't got."""
        return json.dumps([self.asked, self.value, *(answer.dump() for answer in self.answers)])

    @staticmethod
    def load(text: str) -> Preference:
        """What `dump` has written."""
        count, value, *answers = json.loads(text)
        return Preference(tuple(map(Conversation.load, answers)), count, value)

    def prompt(self) -> str:
        """What the answers answer to, the same text for each row with this prompt."""
        return json.dumps([plain(message) for message in self.answers[0].messages[: self.asked]], sort_keys=True)

    def said(self) -> str:
        """All that is said in it, the prompt once, for a tokenizer that is trained on it."""
        first, *others = self.answers
        return "\n\n".join(
            [first.said(), *(Conversation(other.messages[self.asked :]).said() for other in others)],
        )


Read = tuple[Preference, set[str]]
"""What a row holds, and its fields that nothing reads."""


def pair_of(given: Any, where: str) -> Read:
    """The pair of one row. Raises `UserError` that says `where` and what is wrong."""
    row = _row(given, where, "a prompt, chosen and rejected")
    forms = [names for names in PAIRS if any(name in row for name in names)]
    if len(forms) > 1:
        raise UserError("data/row-of-two-pairs", f"{where} has two pairs, {forms}: give one of them")
    if not forms or not all(name in row for name in forms[0]):
        raise UserError(
            "data/row-without-pair",
            f"{where} has no chosen and rejected, only {_named(row)}: give both, or OpenAI's preferred_output and "
            "non_preferred_output",
        )
    talks, found = _conversations(row, forms[0], where)
    pair = Preference(talks, len(talks[0].messages) - _size(found.answers[0]), _margin(row, where))
    _check_prompt(pair, where)
    if same(*(talk.messages for talk in talks)):
        raise UserError(
            "data/pair-answers-equal",
            f"{where}: {' and '.join(forms[0])} are equal, so that nothing is preferred: {LEAVE}",
        )
    scores = next((names for names in SCORES if all(_is_number(row.get(name)) for name in names)), ())
    if scores and row[scores[0]] < row[scores[1]]:
        raise UserError(
            "data/pair-scores-contradict",
            f"{where} has {scores[0]} = {row[scores[0]]}, less than {scores[1]} = {row[scores[1]]}, so that the "
            f"rejected answer is the better one: {LEAVE}",
        )
    return pair, _unread(row, pair, found, {MARGIN, *scores})


def label_of(given: Any, where: str) -> Read:
    """The labelled answer of one row. Raises `UserError` that says `where` and what is wrong."""
    row = _row(given, where, "a prompt, a completion and a label")
    name = next((name for name in ANSWERS if name in row), None)
    if name is None or LABEL not in row:
        raise UserError(
            "data/row-without-label",
            f"{where} has no completion with a label, only {_named(row)}: give prompt, completion and label "
            "(pairs are for data.format = pairs)",
        )
    label = row[LABEL]
    if not isinstance(label, bool | int | float) or label not in (0, 1):
        raise UserError(
            "data/label-unusable",
            f"{where} has label = {shown(label)}: an answer is good (true) or bad (false); {LEAVE}",
        )
    talks, found = _conversations(row, (name,), where)
    answer = Preference(talks, len(talks[0].messages) - _size(found.answers[0]), bool(label))
    _check_prompt(answer, where)
    return answer, _unread(row, answer, found, {LABEL})


READERS: Mapping[str, Callable[[Any, str], Read]] = {"pairs": pair_of, "labels": label_of}
"""By `data.format`."""


def _row(given: Any, where: str, wanted: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UserError("data/preference-not-an-object", f"{where} is no object: write {wanted}")
    row = {name: value for name, value in given.items() if value is not None}
    if isinstance(row.get("input"), dict) and row["input"].get("tools"):
        row = {"tools": row["input"]["tools"]} | row
    return row


def _conversations(row: dict[str, Any], names: tuple[str, ...], where: str) -> tuple[tuple[Conversation, ...], Asked]:
    found = asked(row, names, where)
    beside = {name: value for name, value in row.items() if name in BESIDE or name in REFUSED}
    return tuple(
        conversation_of(beside | {"prompt": found.prompt, "completion": answer}, f"{where}, {name}")
        for name, answer in zip(names, found.answers, strict=True)
    ), found


def _size(answer: Any) -> int:
    return len(answer) if isinstance(answer, list) else 1


def _check_prompt(one: Preference, where: str) -> None:
    messages = one.answers[0].messages[: one.asked]
    if not any(message.get("content", "").strip() or message.get("tool_calls") for message in messages):
        raise UserError("data/pair-prompt-empty", f"{where} has an empty prompt: {LEAVE}")


def _margin(row: Mapping[str, Any], where: str) -> float | None:
    margin = row.get(MARGIN)
    if margin is None:
        return None
    if not _is_number(margin) or not 0 <= margin < math.inf:
        raise UserError(
            "data/pair-margin-unusable",
            f"{where} has margin = {shown(margin)}: by how much an answer is better is a number from 0 on; {LEAVE}",
        )
    return float(margin)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unread(row: Mapping[str, Any], one: Preference, found: Asked, more: set[str]) -> set[str]:
    read = found.read | more | {*BESIDE, *REFUSED}
    of_input = row["input"] if isinstance(row.get("input"), dict) else {}
    return (
        {name for name in row if name not in read}
        | {f"input.{name}" for name in of_input if name not in ("messages", "tools") and of_input[name] is not None}
        | {name for talk in one.answers for name in unread_fields({}, talk)}
    )


def _named(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "nothing"

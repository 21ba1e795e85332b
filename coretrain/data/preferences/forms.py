"""The forms in which people's files hold pairs of answers: each is turned into a prompt and two answers.

Strings (TRL, Intel's Orca pairs), lists of messages (TRL, Argilla), whole conversations with a common beginning
(TRL's implicit prompt, UltraFeedback), `input` with two outputs (OpenAI), and dialogues in one string (HH-RLHF).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coretrain.base.errors import UserError
from coretrain.tokenizers.conversation import NOTES

PROMPTS = ("prompt", "question", "instruction", "input", "conversations", "messages")
"""Names of the field with what is asked: the first that a row has."""
WHOLE = ("prompt", "question", "instruction", "input")
"""Those that are held against the common beginning, where the answers are whole conversations."""
BEGINNERS = ("system", "developer", "user")
"""Who speaks first in a whole conversation."""
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
"""Marks of turns in HH-RLHF's strings."""
TURN = re.compile(f"({HUMAN}|{ASSISTANT})")
LEAVE = "mend the row, or leave all such rows out with data.misfits = drop"


@dataclass(frozen=True)
class Asked:
    """What is asked and some answers to it; texts, or lists of messages, all of one kind."""

    prompt: Any
    answers: tuple[Any, ...]
    read: frozenset[str]
    """Fields of the row that this was made of."""


def asked(row: Mapping[str, Any], names: tuple[str, ...], where: str) -> Asked:
    """The prompt of a row and its answers, which are the fields `names`. Raises `UserError`."""
    given: tuple[Any, ...] = tuple(
        [answer] if isinstance(answer, dict) else answer for answer in (row[name] for name in names)
    )
    for name, answer in zip(names, given, strict=True):
        if not isinstance(answer, str | list) or (isinstance(answer, list) and not answer):
            raise UserError(
                "data/answer-not-text",
                f"{where}: {name} is neither text nor a list of messages: write one of the two; {LEAVE}",
            )
    if len({type(answer) for answer in given}) > 1:
        raise UserError(
            "data/answers-of-two-kinds", f"{where}: {' and '.join(names)} are a text and a list: write both alike"
        )
    if all(isinstance(answer, str) and answer.startswith(HUMAN) for answer in given):
        given = tuple(map(_turns, given))
    if isinstance(given[0], list) and any(_role(answer[0]) in BEGINNERS for answer in given):
        return _whole(row, names, given, where)
    field = next((name for name in PROMPTS if row.get(name) is not None), None)
    if field is None:
        raise UserError(
            "data/row-without-prompt",
            f"{where} has no prompt, and no common beginning of messages in {' and '.join(names)}: give one of the two",
        )
    return Asked(*_alike(_prompt(row[field]), given), frozenset([field, *names]))


def _whole(row: Mapping[str, Any], names: tuple[str, ...], given: tuple[list[Any], ...], where: str) -> Asked:
    """Of whole conversations: what they begin with alike is the prompt, up to the first answer that differs."""
    common = _common(given)
    while common and _role(given[0][common - 1]) == "assistant" and any(len(one) == common for one in given):
        common -= 1  # an answer that all have, where one ends with it
    prompt, answers = given[0][:common], tuple(one[common:] for one in given)
    if not prompt or not all(answer and _role(answer[0]) == "assistant" for answer in answers):
        raise UserError(
            "data/pair-prompts-differ",
            f"{where}: the conversations of {' and '.join(names)} differ before an answer does, so they are answers to "
            f"different prompts: {LEAVE}",
        )
    read = set(names)
    for name in [name for name in WHOLE if row.get(name) is not None][:1]:
        stated = _prompt(row[name])
        said = [plain(message).get("content") for message in prompt if _role(message) == "user"]
        if stated not in said and not (isinstance(stated, list) and same(stated, prompt[-len(stated) :])):
            raise UserError(
                "data/pair-prompt-not-theirs",
                f"{where}: {name} isn't what the conversations of {' and '.join(names)} begin with: {LEAVE}",
            )
        read.add(name)
    return Asked(prompt, answers, frozenset(read))


def _common(given: tuple[list[Any], ...]) -> int:
    """How many messages all of these begin with alike."""
    count = 0
    while all(len(one) > count for one in given) and all(same(one[count], given[0][count]) for one in given[1:]):
        count += 1
    return count


def _prompt(value: Any) -> Any:
    """A prompt as it was given, OpenAI's `input` and HH-RLHF's strings as messages."""
    if isinstance(value, dict):
        value = value.get("messages")
    if isinstance(value, str) and value.startswith(HUMAN):
        turns = _turns(value)
        return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns
    return value


def _alike(prompt: Any, answers: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Prompt and answers of one kind: where one is a list of messages, so is the other."""
    if isinstance(prompt, list) and isinstance(answers[0], str):
        return prompt, tuple([{"role": "assistant", "content": answer}] for answer in answers)
    if isinstance(prompt, str) and isinstance(answers[0], list):
        return [{"role": "user", "content": prompt}], answers
    return prompt, answers


def _turns(text: str) -> list[dict[str, str]]:
    """The messages of a dialogue in HH-RLHF's form, each without the blank before it and what follows it."""
    marks = {HUMAN: "user", ASSISTANT: "assistant"}
    _, *pieces = TURN.split(text)
    return [
        {"role": marks[mark], "content": said.strip()} for mark, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _role(message: Any) -> Any:
    if not isinstance(message, dict):
        return None
    role = message.get("role") or message.get("from")
    return {"gpt": "assistant", "human": "user"}.get(role, role) if isinstance(role, str) else None


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message by the standard names, without what files note of it."""
    names = {"from": "role", "value": "content"}
    plain = {names.get(key, key): value for key, value in message.items() if value is not None and key not in NOTES}
    return plain | {"role": _role(message)}


def same(one: Any, other: Any) -> bool:
    """Whether two messages, or two lists of them, say the same."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return plain(one) == plain(other) if isinstance(one, dict) and isinstance(other, dict) else one == other

"""Rows of prompts: a text or messages to be answered; all other fields go to the reward.

What a chat template writes besides messages (a system text, tools, documents, its variables) is read as in a row of
conversations (`chat_rows.py`), and goes to the reward too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coretrain.base.errors import UserError
from coretrain.data.chat_rows import MISFITS as OF_CONVERSATIONS
from coretrain.data.chat_rows import REFUSED as REFUSED_IN_CHAT
from coretrain.data.chat_rows import conversation_of
from coretrain.data.preferences.forms import plain
from coretrain.tokenizers.conversation import Conversation

NAMES = ("prompt", "messages")
"""Fields that hold what is to be answered; a row has one of them."""
BESIDE = ("system", "tools", "documents", "chat_template_kwargs")
"""Fields that a template writes."""
REFUSED = {
    name: REFUSED_IN_CHAT[name]
    for name in (
        *("image", "images", "video", "videos", "audio", "audios"),
        *("functions", "function_call", "chat_template", "continue_final_message"),
    )
}
"""Fields by which a trainer would ask something else, each with the way out."""
TAKEN = ("prompts", "completions", "completion_ids", "ended")
"""Names by which a reward function gets answers: no names for a row's own fields."""
MISFITS = OF_CONVERSATIONS | {
    "data/prompt-ends-with-answer",
    "data/prompt-blank",
    "data/prompt-missing",
    "data/prompt-unreadable",
}
"""Faults of a single row, which `data.misfits` = drop leaves out."""
STAND_IN = {"role": "assistant", "content": "?"}


@dataclass(frozen=True)
class Question:
    """One row: what is asked, and all its fields, `prompt` as it was given among them."""

    talk: Conversation
    fields: Mapping[str, Any]

    def dump(self) -> str:
        """As one line of JSON. Raises TypeError for values that JSON hasn't got."""
        return json.dumps([self.talk.dump(), dict(self.fields)])

    @staticmethod
    def load(text: str) -> Question:
        """What `dump` has written."""
        talk, fields = json.loads(text)
        return Question(Conversation.load(talk), fields)

    def key(self) -> str:
        """What is asked, the same text for each row with this prompt, here and among pairs."""
        return json.dumps([plain(message) for message in self.talk.messages], sort_keys=True)


def question_of(given: Any, where: str) -> Question:
    """The question of one row. Raises `UserError` that says `where` and what is wrong."""
    if not isinstance(given, dict):
        raise UserError("data/prompt-row-not-an-object", f"{where} is no object: write a prompt and its fields")
    row = {name: value for name, value in given.items() if value is not None}
    names = [name for name in NAMES if name in row]
    if len(names) > 1:
        raise UserError("data/row-of-two-prompts", f"{where} has prompt and messages: give one of the two")
    if not names:
        found = ", ".join(map(str, row)) or "nothing"
        raise UserError("data/prompt-missing", f"{where} has neither prompt nor messages, only {found}: give one")
    for name in row:
        if name in REFUSED:
            raise UserError("data/prompt-field-refused", f"{where} has {name}, which isn't read: {REFUSED[name]}")
        if name in TAKEN:
            raise UserError(
                "data/prompt-field-taken",
                f"{where} has {name}, by which a reward function gets the answers: rename that field",
            )
    asked = row.pop(names[0])
    listed = isinstance(asked, list)
    if not listed and (names[0] == "messages" or not isinstance(asked, str)):
        form = "text or list" if names[0] == "prompt" else "list"
        raise UserError(
            "data/prompt-unreadable",
            f"{where}: {names[0]} is no {form} of messages: write [{{role, content}}, ...], or a text as prompt",
        )
    beside = {name: value for name, value in row.items() if name in BESIDE}
    if listed and asked and _answered(asked[-1]):
        raise UserError(
            "data/prompt-ends-with-answer",
            f"{where}: {names[0]} ends with the assistant's message: end it with what is to be answered, and give the "
            "answer another name",
        )
    completion: Any = [STAND_IN] if listed else STAND_IN["content"]
    whole = conversation_of(beside | {"prompt": asked, "completion": completion}, where)
    talk = Conversation(whole.messages[:-1], whole.tools, whole.documents, whole.variables)
    if not any(message.get("content", "").strip() or message.get("tool_calls") for message in talk.messages):
        raise UserError("data/prompt-blank", f"{where} has an empty prompt: fill it, or leave the row out")
    return Question(talk, {"prompt": asked, **row})


def _answered(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role", message.get("from")) in ("assistant", "gpt")

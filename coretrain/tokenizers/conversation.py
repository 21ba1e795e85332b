"""A conversation as a chat template gets it, and as a document: one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Message = dict[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning, the standard one first: a template gets it by the first two, as in transformers."""

LABELS = ("name", "tool_call_id")
"""Of a tool's message: what links it to its call. Many templates tell calls by their order, and write neither."""

NOTES = (
    *(
        "id",
        "uuid",
        "message_id",
        "parent_id",
        "index",
        "turn",
        "date",
        "time",
        "timestamp",
        "created_at",
        "update_time",
    ),
    *("lang", "language", "metadata", "model", "source", "url"),
)
"""Of any message: what people's files note of it. A template may read them; where it doesn't, nothing is lost."""


@dataclass(frozen=True)
class Conversation:
    """Messages, and what else a template may write."""

    messages: list[Message]
    """Each with `role` and mostly `content`; the other fields are for the template."""
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = field(default_factory=dict)
    """Further variables of the template (`chat_template_kwargs`)."""
    unlearnt: tuple[int, ...] = ()
    """Places of the assistant's messages that are no targets."""

    def dump(self) -> str:
        """As one line of JSON. Raises TypeError for values that JSON hasn't got, such as dates of a table."""
        more: dict[str, Any] = {
            name: value for name, value in (("tools", self.tools), ("documents", self.documents)) if value is not None
        }
        if self.variables:
            more["variables"] = self.variables
        if self.unlearnt:
            more["unlearnt"] = list(self.unlearnt)
        return json.dumps({"messages": self.messages, **more} if more else self.messages)

    @staticmethod
    def load(text: str) -> Conversation:
        """What `dump` has written."""
        held = json.loads(text)
        if isinstance(held, list):
            return Conversation(held)
        return Conversation(**held | {"unlearnt": tuple(held.get("unlearnt", ()))})

    def upto(self, number: int) -> Conversation:
        """The same with its first `number` messages."""
        return replace(self, messages=self.messages[:number])

    def said(self) -> str:
        """All that is said in it, for a tokenizer that is trained on it."""
        return "\n\n".join(_texts(self.messages))

    def changed(self, change: Callable[[str], str]) -> Conversation:
        """The same with `change` of each string that a template may write; roles stay."""
        return replace(
            self,
            messages=[
                {name: value if name == "role" else _changed(value, change) for name, value in message.items()}
                for message in self.messages
            ],
            tools=_changed(self.tools, change),
            documents=_changed(self.documents, change),
            variables=_changed(self.variables, change),
        )

    def holds(self, find: Callable[[str], object]) -> bool:
        """Whether `find` finds something in one of those strings."""
        held = [value for message in self.messages for name, value in message.items() if name != "role"]
        return any(map(find, _strings([held, self.tools, self.documents, self.variables])))

    def with_message(self, number: int, change: Message) -> Conversation:
        """The same with some fields of a message changed; None takes one away."""
        fields = {name: value for name, value in (self.messages[number] | change).items() if value is not None}
        return replace(self, messages=[*self.messages[:number], fields, *self.messages[number + 1 :]])


def named_reasoning(message: Message) -> Message:
    """A message with its reasoning by the names that templates read, as transformers gives it to them."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _texts(messages: list[Message]) -> list[str]:
    found = []
    for message in messages:
        for name, value in message.items():
            if name == "content" or name in REASONING:
                found.append(str(value))
            elif name == "tool_calls":
                found.append(json.dumps(value, ensure_ascii=False))
    return found


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case list():
            return [_changed(one, change) for one in value]
        case dict():
            return {_changed(name, change): _changed(one, change) for name, one in value.items()}
    return value


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for one in value:
                yield from _strings(one)
        case dict():
            for name, one in value.items():
                yield from (name, *_strings(one))

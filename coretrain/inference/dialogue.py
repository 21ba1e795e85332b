"""A conversation as it is kept in the terminal: what was said, what the next answer is made with, and its ids."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path, write_atomically
from coretrain.base.numbers import real_number, whole_number
from coretrain.contract.sampling import Sampling
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.conversation import Conversation, Message
from coretrain.tokenizers.jinja import TemplateError

ANSWER = 200
"""Tokens of an answer where nobody says how many."""


@dataclass(frozen=True)
class Asking:
    """The next answer's prompt."""

    ids: list[int]
    tokens: int
    """So many may follow."""
    left_out: int
    """Of the oldest messages, which no longer fit."""


@dataclass
class Dialogue:
    """What was said so far, and how the next answer is chosen."""

    sampling: Sampling
    tokens: int | None = None
    """Of an answer at most; None: as many as fit, at most `ANSWER`."""
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    """Questions and answers in turn."""

    def all_messages(self) -> list[Message]:
        """With what the system says, where it says something."""
        return [*([{"role": "system", "content": self.system}] if self.system else ()), *self.messages]

    def ask(self, text: str) -> None:
        """A question comes next."""
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """What was said to it."""
        self.messages.append({"role": "assistant", "content": text})

    def last(self) -> str:
        """The last question. Raises `UserError` where there is none."""
        return str(self.messages[self._last()]["content"])

    def undo(self) -> str:
        """Take the last question back, with its answer; the question. Raises `UserError` where there is none."""
        question = self.last()
        del self.messages[self._last() :]
        return question

    def _last(self) -> int:
        places = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise UserError("inference/nothing-asked", "nothing was asked yet: type a question")
        return places[-1]

    def reset(self) -> None:
        """Forget what was said; the system's word and the settings stay."""
        self.messages.clear()

    def asking(self, template: Template, context: int) -> Asking:
        """The prompt for the next answer: what was said, without its oldest turns where all of it doesn't fit.

        Raises `UserError` where the template refuses it, or the last question alone doesn't fit.
        """
        wanted = min(ANSWER, context // 4) if self.tokens is None else self.tokens
        starts = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        ids = list[int]()
        for start in starts:
            ids = self._ids(template, self.messages[start:])
            if len(ids) + wanted <= context:
                most = ANSWER if self.tokens is None else self.tokens
                return Asking(ids, min(most, context - len(ids)), start)
        raise UserError(
            "inference/question-too-long",
            f"the question has {len(ids)} tokens and its answer may have {wanted}, which is more than the {context} of "
            "the model's context: ask a shorter one, or give a lower /tokens",
        )

    def _ids(self, template: Template, messages: list[Message]) -> list[int]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        try:
            return [int(token) for token in template.asked(Conversation([*head, *messages]))]
        except TemplateError as error:
            way_out = "take back what it refuses by /undo" if not self.system else "try without /system, or /undo"
            raise UserError("inference/conversation-refused", f"{error}: {way_out}") from None

    def save(self, name: str) -> str:
        """Write it as a line of JSON that a run can train on (`data.format = chat`). Raises `UserError` where a file
        is there already, or none can be written; otherwise gives a sentence."""
        path = typed_path(name)
        if path.exists():
            raise UserError("inference/save-exists", f"{path} is there already: give another name")
        try:
            write_atomically(path, json.dumps({"messages": self.all_messages()}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise UserError(
                "inference/save-unwritable", f"{path} can't be written ({error.strerror}): give another name"
            ) from None
        return f"{len(self.messages)} messages are in {path}"

    def change(self, name: str, text: str) -> str:
        """Set a setting by what was typed; a sentence of what it is now. Raises `UserError` for a wrong value."""
        if not text:
            return f"{name} is {self.setting(name)}"
        if name == "system":
            self.system = "" if text in ("-", "none") else text
        else:
            try:
                value = SETTINGS[name](text)
            except argparse.ArgumentTypeError as error:
                raise UserError("inference/setting-wrong", f"/{name}: {error}") from None
            if name == "tokens":
                self.tokens = int(value) or None
            else:
                self.sampling = replace(self.sampling, **{name: value})
        return f"{name} is {self.setting(name)}"

    def setting(self, name: str) -> str:
        """As it is said."""
        if name == "system":
            return f'"{self.system}"' if self.system else "empty"
        if name == "tokens":
            return f"as many as fit, at most {ANSWER}" if self.tokens is None else str(self.tokens)
        value = getattr(self.sampling, name)
        return f"{value:g}" if isinstance(value, float) else str(value)


SETTINGS: Mapping[str, Callable[[str], Any]] = {
    "temperature": real_number(),
    "top_p": real_number(most=1.0),
    "top_k": whole_number(),
    "tokens": whole_number(),
    "seed": whole_number(-(2**63), 2**63 - 1),
}
"""What each is read by."""

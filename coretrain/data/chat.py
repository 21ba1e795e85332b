"""Rows of conversations as documents of the prepared shards: each token with whether it is a target.

A row is `{"messages": [{"role", "content"}, ...]}` or `{"prompt", "completion"}`, which is one question and its answer.
A shard of them holds facts, not ids: 2 x the token's id, and 1 more where it is the assistant's own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import short_hash
from coretrain.config.run import RunConfig
from coretrain.data.sources import Source, open_rows
from coretrain.tokenizers.chat_template import (
    Message,
    SampleError,
    Template,
    TemplateError,
    open_template,
)
from coretrain.tokenizers.tokenizer import Ids, Tokenizer

ROLES = ("system", "user", "assistant")


def messages_of(row: Any, where: str) -> list[Message]:
    """The conversation of one row. Raises `UserError` that says `where` and what the row lacks."""
    if not isinstance(row, dict):
        raise UserError("data/row-not-an-object", f"{where} is no object: write messages, or prompt and completion")
    row = {name: value for name, value in row.items() if value is not None}  # a column of a table that has both forms
    if "messages" in row:
        given = row["messages"]
        if not isinstance(given, list) or not given:
            raise UserError(
                "data/messages-not-a-list",
                f"{where}: messages is no list of messages: write [{{role, content}}, ...]",
            )
        messages = [_message(one, f"{where}, message {number}") for number, one in enumerate(given, 1)]
    elif "prompt" in row and "completion" in row:
        for name in ("prompt", "completion"):
            if not isinstance(row[name], str):
                raise UserError(
                    "data/prompt-not-text", f"{where}: {name} is no text: write a string, or a row of messages"
                )
        messages = [_said("user", row["prompt"]), _said("assistant", row["completion"])]
    else:
        found = ", ".join(map(str, row)) or "nothing"
        raise UserError(
            "data/row-without-messages",
            f"{where} has neither messages nor prompt and completion, only {found}: give one of the two",
        )
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise UserError(
            "data/no-assistant-message",
            f"{where} has no message of the assistant: there is nothing to learn; leave the row out",
        )
    if any(not answer["content"].strip() for answer in answers):
        raise UserError(
            "data/answer-empty",
            f"{where} has an empty answer: fill the completion, or leave the row out",
        )
    return messages


def _said(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _message(one: Any, where: str) -> Message:
    for name in ("role", "content"):
        if not isinstance(one, dict) or name not in one:
            raise UserError("data/message-field-missing", f"{where} has no {name}: a message is {{role, content}}")
        if not isinstance(one[name], str):
            raise UserError("data/message-field-not-text", f"{where}: {name} is no text: write a string")
    if one["role"] not in ROLES:
        raise UserError("data/message-role-unknown", f"{where} has role {one['role']!r}: use {', '.join(ROLES)}")
    return _said(one["role"], one["content"])


def chat_source(name: str) -> Source:
    """The conversations that `data.source` names, each as the JSON of its messages."""
    found = open_rows(name)

    def documents() -> Iterator[str]:
        for where, row in found.rows():
            yield json.dumps(messages_of(row, where))

    return Source(name, ("chat", *found.listing), documents, found.size, found.passed_over)


def said_in(document: str) -> str:
    """What is said in a conversation of `chat_source`, for a tokenizer that is trained on it."""
    return "\n\n".join(message["content"] for message in json.loads(document))


@contextlib.contextmanager
def located(source: Source) -> Iterator[None]:
    """Turn what a `ConversationEncoder` says about a conversation into a `UserError` with its file and line."""
    try:
        yield
    except TemplateError as error:
        reason, document = error.args
        for where, row in open_rows(source.name).rows():
            if json.dumps(messages_of(row, where)) == document:
                raise UserError("data/sample-refused", f"{where}: {reason}") from None
        raise UserError(
            "data/source-changed-since-read",
            f"data.source = {source.name} has changed while it was read: {reason}",
        ) from None


@dataclass(frozen=True)
class ConversationEncoder:
    """Conversations to facts, in the place of a tokenizer where data is prepared."""

    template: Template
    context: int
    misfits: str

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the ids."""
        return self.template.tokenizer

    @property
    def name(self) -> str:
        """The tokenizer's name."""
        return self.tokenizer.name

    @property
    def vocab(self) -> int:
        """The largest fact + 1."""
        return 2 * self.tokenizer.vocab

    @property
    def eot(self) -> int:
        """The fact that ends a document: no target."""
        return 2 * self.tokenizer.eot

    @property
    def fingerprint(self) -> str:
        """Hex hash of all that the facts depend on besides the conversations."""
        own = short_hash("chat", 1, self.tokenizer.fingerprint, *self.template.facts, self.context, self.misfits)
        return 2 * own  # a shard's header has room for 32 bytes

    def encode(self, text: str) -> Ids:
        """Labelled ids of a conversation, uint32 [n]; none where it is dropped. `TemplateError` says why it can't."""
        try:
            ids, targets = self.template.sample(json.loads(text))
            if len(ids) - 1 > self.context:
                raise SampleError(f"{len(ids) - 1} tokens are more than a row's {self.context}: shorten the sample")
        except SampleError as error:
            if self.misfits == "drop":
                return np.empty(0, np.uint32)
            raise TemplateError(f"{error.args[0]}, or leave such samples out with data.misfits = drop", text) from None
        except TemplateError as error:
            raise TemplateError(error.args[0], text) from None
        facts: Ids = 2 * ids + targets.astype(np.uint32)
        return facts

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`."""
        self.tokenizer.save(folder)


def open_encoder(config: RunConfig, tokenizer: Tokenizer) -> ConversationEncoder:
    """The coder of a run's conversations. Raises `UserError` where its template can't be used with its tokenizer."""
    template = open_template(config.data.chat_template, tokenizer, config.data.chat_date)
    if config.row_tokens > config.model.context:
        raise UserError(
            "data/row-tokens-exceed-context",
            f"data.row_tokens = {config.row_tokens} is more than model.context = {config.model.context}: lower it",
        )
    return ConversationEncoder(template, config.row_tokens, config.data.misfits)

"""Conversations as documents of the prepared shards: each token with whether it is a target.

A shard of them holds facts, not ids: 2 x the token's id, and 1 more where it is to be learnt. A conversation that was
dropped has no fact, or a single one that says why (`DROPPED`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import short_hash
from coretrain.config.run import RunConfig
from coretrain.data.chat_rows import MISFITS, conversation_of, unread_fields
from coretrain.data.preferences.forms import plain
from coretrain.data.rows import open_rows
from coretrain.data.sources import Source
from coretrain.tasks.registry import is_task
from coretrain.tokenizers.chat_template import (
    SampleError,
    Template,
    open_template,
)
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.tokenizer import Ids, Tokenizer

MISFIT = "misfit"
MOST_NAMED = 1000
"""Fields that nothing reads, of which a file may have new ones in every row."""
DROPPED = {
    0: "too long or with an answer that begins inside a token",
    2: "of a row that is no usable conversation",
    4: "refused by the template",
}
"""Why a conversation was dropped, by the fact that stands for it; 0: there is none."""


def chat_source(name: str, misfits: str = "refuse") -> Source:
    """The conversations that `data.source` names, each as a line of JSON; with `misfits` = drop, also the reasons of
    those that can't be used, which have no tokens then."""
    found, unread = open_rows(name), set[str]()

    def documents() -> Iterator[str]:
        for where, row in found.rows():
            document, fields = _document(row, where, misfits)
            if len(unread) < MOST_NAMED:
                unread.update(fields)
            yield document

    key = _asked if is_task(name) else None
    return Source(name, ("chat", 2, *found.listing), documents, found.size, unread, found.passed_over, split_key=key)


def _asked(document: str) -> str:
    """A task's prompt, as pairs and prompts have it too: what is held out there is held out here."""
    if _is_misfit(document):
        return document
    return json.dumps([plain(message) for message in Conversation.load(document).messages[:-1]], sort_keys=True)


def _document(row: Any, where: str, misfits: str) -> tuple[str, set[str]]:
    try:
        talk = conversation_of(row, where)
        return dumped(talk, where), unread_fields(row, talk)
    except UserError as fault:
        if misfits == "refuse" or fault.code not in MISFITS:
            raise
        row_hash = short_hash(json.dumps(row, default=repr, sort_keys=True))  # no two alike, wherever the file lies
        return json.dumps({MISFIT: row_hash}), set()


class Dumps(Protocol):
    """What of a row becomes a document."""

    def dump(self) -> str:
        """As one line of JSON. Raises TypeError for values that JSON hasn't got."""


def dumped(one: Dumps, where: str) -> str:
    """The document of a row. Raises `UserError` that says `where` it isn't to be had."""
    try:
        return one.dump()
    except (TypeError, RecursionError):
        raise UserError(
            "data/row-not-json",
            f"{where} holds values that JSON hasn't got, such as dates, or is nested too deeply: write texts, or "
            "leave all such rows out with data.misfits = drop",
        ) from None


def _loaded(document: str) -> Conversation:
    try:
        return Conversation.load(document)
    except RecursionError:  # it was read with fewer calls on the stack
        raise SampleError("its values are nested too deeply") from None


def said_in(document: str) -> str:
    """What is said in a conversation of `chat_source`, for a tokenizer that is trained on it."""
    return "" if _is_misfit(document) else Conversation.load(document).said()


def _is_misfit(document: str) -> bool:
    return document.startswith(f'{{"{MISFIT}":')


@contextlib.contextmanager
def located(source: Source, misfits: str) -> Iterator[None]:
    """Turn what a `ConversationEncoder` says about a conversation into a `UserError` with its file and line."""
    with placed(source, "chat", lambda row, where: _document(row, where, misfits)[0]):
        yield


@contextlib.contextmanager
def placed(source: Source, form: str, document_of: Callable[[Any, str], str]) -> Iterator[None]:
    """Turn a `TemplateError` with a reason and a document into a `UserError` with its file and line.

    `form` is data.format, and `document_of` makes the document of a row.
    """
    try:
        yield
    except TemplateError as error:
        reason, document = error.args
        for where, row in open_rows(source.name, form).rows():
            if document_of(row, where) == document:
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
        """Labelled ids of a conversation, uint32 [n]; of one that is dropped, none or the fact that says why.

        `TemplateError` says why it can't be encoded.
        """
        if _is_misfit(text):
            return np.array([2], np.uint32)
        try:
            ids, targets = self.template.sample(_loaded(text))
            if len(ids) - 1 > self.context:
                raise SampleError(
                    f"{len(ids) - 1} tokens are more than a row's {self.context}: shorten the sample", True
                )
        except SampleError as error:
            if self.misfits == "drop":
                return np.array([] if error.fits_not else [4], np.uint32)
            raise TemplateError(f"{error.args[0]}; data.misfits = drop leaves such samples out", text) from None
        facts: Ids = 2 * ids + targets.astype(np.uint32)
        return facts

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`."""
        self.tokenizer.save(folder)


def open_encoder(config: RunConfig, tokenizer: Tokenizer) -> ConversationEncoder:
    """The coder of a run's conversations. Raises `UserError` where its template can't be used with its tokenizer."""
    template = open_template(config.data.chat_template, tokenizer, config.data.chat_date)
    check_row_tokens(config)
    return ConversationEncoder(template, config.row_tokens, config.data.misfits)


def check_row_tokens(config: RunConfig) -> None:
    """Raise `UserError` where packed rows would be longer than the model's context."""
    if config.row_tokens > config.model.context:
        raise UserError(
            "data/row-tokens-exceed-context",
            f"data.row_tokens = {config.row_tokens} is more than model.context = {config.model.context}: lower it",
        )

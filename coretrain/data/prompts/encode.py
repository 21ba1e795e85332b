"""Prompts as documents of the prepared shards: a prompt's tokens, and its row's fields as bytes of JSON.

A shard of them holds facts, not ids: a token's id, or the size of the vocabulary + a byte. A row that was dropped has
no fact, or a single one that says why (`DROPPED`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.base.errors import UserError
from coretrain.base.files import short_hash
from coretrain.config.run import RunConfig
from coretrain.data.chat import MISFIT, dumped, placed
from coretrain.data.prompts.rows import MISFITS, Question, question_of
from coretrain.data.rows import open_rows
from coretrain.data.sources import Source
from coretrain.tokenizers.chat_template import SampleError, Template, open_template
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.tokenizer import Ids, Tokenizer

BYTES = 256
TOO_LONG, UNUSABLE, REFUSED = None, 0, 1
DROPPED = {
    TOO_LONG: "too long to be answered",
    UNUSABLE: "of a row that is no usable prompt",
    REFUSED: "refused by the template",
}
"""Why a prompt was dropped, by the byte of the fact that stands for it; None: there is none."""


def prompt_source(name: str, misfits: str = "refuse") -> Source:
    """The prompts that `data.source` names, each a line of JSON; with `misfits` = drop also those that can't be used,
    which have no tokens then."""
    found = open_rows(name, "prompts")

    def documents() -> Iterator[str]:
        for where, row in found.rows():
            yield _document(row, where, misfits)

    listing = ("prompts", 1, *found.listing)
    return Source(name, listing, documents, found.size, passed_over=found.passed_over, split_key=_split_key)


def _document(row: Any, where: str, misfits: str) -> str:
    try:
        return dumped(question_of(row, where), where)
    except UserError as fault:
        if misfits == "refuse" or fault.code not in MISFITS:
            raise
        return json.dumps({MISFIT: short_hash(json.dumps(row, default=repr, sort_keys=True))})


def _is_misfit(document: str) -> bool:
    return document.startswith("{")


def _split_key(document: str) -> str:
    return document if _is_misfit(document) else Question.load(document).key()


def said_in(document: str) -> str:
    """What is said in a document of `prompt_source`, for a tokenizer that is trained on it."""
    return "" if _is_misfit(document) else Question.load(document).talk.said()


def located(source: Source, misfits: str) -> contextlib.AbstractContextManager[None]:
    """Turn what a `PromptEncoder` says about a row into a `UserError` with its file and line."""
    return placed(source, "prompts", lambda row, where: _document(row, where, misfits))


@dataclass(frozen=True)
class PromptEncoder:
    """Prompts to facts, in the place of a tokenizer where data is prepared."""

    template: Template
    context: int
    answer: int
    """Tokens of an answer at most, for which the context must have room."""
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
        return self.tokenizer.vocab + BYTES

    @property
    def eot(self) -> int:
        """The fact that ends a document."""
        return self.tokenizer.eot

    @property
    def fingerprint(self) -> str:
        """Hex hash of all that the facts depend on besides the rows."""
        limits = (self.context - self.answer, self.misfits)
        own = short_hash("prompts", 1, self.tokenizer.fingerprint, *self.template.facts, *limits)
        return 2 * own  # a shard's header has room for 32 bytes

    def encode(self, text: str) -> Ids:
        """Facts of a row, uint32 [n]; of one that is dropped, none or the fact that says why.

        `TemplateError` says why it can't be encoded.
        """
        first = self.tokenizer.vocab
        if _is_misfit(text):
            return np.array([first + UNUSABLE], np.uint32)
        question = _loaded(text)
        try:
            ids = self.template.asked(question.talk)
            most = self.context - self.answer
            if len(ids) > most:
                raise SampleError(
                    f"its prompt has {len(ids)} tokens, more than the {most} that model.context = {self.context} "
                    f"leaves beside align.tokens = {self.answer}: shorten it",
                    True,
                )
        except SampleError as error:
            if self.misfits == "drop":
                return np.array([] if error.fits_not else [first + REFUSED], np.uint32)
            raise TemplateError(f"{error.args[0]}; data.misfits = drop leaves such rows out", text) from None
        beside = np.frombuffer(json.dumps(question.fields).encode("ascii"), np.uint8)
        facts: Ids = np.concatenate([ids, first + beside.astype(np.uint32)]).astype(np.uint32)
        return facts

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`."""
        self.tokenizer.save(folder)


def _loaded(text: str) -> Question:
    try:
        return Question.load(text)
    except RecursionError:  # it was read with fewer calls on the stack
        raise TemplateError("its values are nested too deeply", text) from None


def decoded(facts: npt.NDArray[Any], vocab: int) -> tuple[list[int], dict[str, Any]]:
    """Ids and fields of a row's facts."""
    split = int(np.searchsorted(facts >= vocab, True))
    raw = (facts[split:].astype(np.int64) - vocab).astype(np.uint8).tobytes()
    fields: dict[str, Any] = json.loads(raw.decode("ascii"))
    return [int(token) for token in facts[:split]], fields


def open_encoder(config: RunConfig, tokenizer: Tokenizer) -> PromptEncoder:
    """The coder of a run's prompts. Raises `UserError` where its template can't be used with its tokenizer, or answers
    leave no room for a prompt."""
    template = open_template(config.data.chat_template, tokenizer, config.data.chat_date)
    if config.align.tokens >= config.model.context:
        raise UserError(
            "data/answers-fill-context",
            f"align.tokens = {config.align.tokens} leaves no room for a prompt in model.context = "
            f"{config.model.context}: lower it",
        )
    return PromptEncoder(template, config.model.context, config.align.tokens, config.data.misfits)

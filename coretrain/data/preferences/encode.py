"""Preferences as documents of the prepared shards: the prompt's tokens once, and those of each answer.

A shard of them holds facts, not ids. A document's first fact says how many facts after it spell its margin (0 or 16:
the hex digits of a float64). Then comes a fact for each token: 4 x its id, 2 more in a rejected or bad answer, 1 more
where it is to be learnt. What stands before the first token to be learnt is the prompt. A row that was dropped has at
most one fact, which says why (`DROPPED`).
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coretrain.base.errors import UserError
from coretrain.base.files import short_hash
from coretrain.config.run import RunConfig
from coretrain.data.chat import MISFIT, MOST_NAMED, check_row_tokens, dumped, placed
from coretrain.data.preferences.rows import MISFITS, READERS, Preference, Read
from coretrain.data.rows import open_rows
from coretrain.data.sources import Source
from coretrain.tokenizers.chat_template import SampleError, Template, open_template
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.tokenizer import Ids, Tokenizer

LEARNT, WORSE, ID = 1, 2, 4
"""What a fact adds for a token to be learnt, and for one of a rejected or bad answer; what an id is multiplied by."""
DIGITS = 16
TOO_LONG, UNUSABLE, REFUSED, ALIKE = None, 4, 8, 12
DROPPED = {
    TOO_LONG: "longer than a row",
    UNUSABLE: "of a row that can't be used",
    REFUSED: "refused by the template",
    ALIKE: "whose answers come to the same tokens",
}
"""Why a row was dropped, by the fact that stands for it; None: there is none."""


class Dropped(SampleError):
    """A row that can't be used, with the fact that says why."""

    def __init__(self, reason: str, fact: int | None) -> None:
        super().__init__(reason, fact is TOO_LONG)
        self.fact = fact


def preference_source(name: str, form: str, misfits: str = "refuse") -> Source:
    """The rows that `data.source` names as documents, each a line of JSON; `form` is data.format. With `misfits` = drop
    also those that can't be used, which have no tokens then."""
    found, unread = open_rows(name, form), set[str]()

    def documents() -> Iterator[str]:
        for where, row in found.rows():
            document, fields = _document(row, where, READERS[form], misfits)
            if len(unread) < MOST_NAMED:
                unread.update(fields)
            yield document

    listing = (form, 1, *found.listing)
    return Source(name, listing, documents, found.size, unread, found.passed_over, split_key=_split_key)


def _document(row: Any, where: str, read: Callable[[Any, str], Read], misfits: str) -> tuple[str, set[str]]:
    try:
        one, unread = read(row, where)
        return dumped(one, where), unread
    except UserError as fault:
        if misfits == "refuse" or fault.code not in MISFITS:
            raise
        row_hash = short_hash(json.dumps(row, default=repr, sort_keys=True))
        return json.dumps({MISFIT: row_hash}), set()


def _is_misfit(document: str) -> bool:
    return document.startswith("{")


def _split_key(document: str) -> str:
    return document if _is_misfit(document) else Preference.load(document).prompt()


def said_in(document: str) -> str:
    """What is said in a document of `preference_source`, for a tokenizer that is trained on it."""
    return "" if _is_misfit(document) else Preference.load(document).said()


def located(source: Source, form: str, misfits: str) -> contextlib.AbstractContextManager[None]:
    """Turn what a `PreferenceEncoder` says about a row into a `UserError` with its file and line."""
    return placed(source, form, lambda row, where: _document(row, where, READERS[form], misfits)[0])


@dataclass(frozen=True)
class PreferenceEncoder:
    """Rows of preferences to facts, in the place of a tokenizer where data is prepared."""

    template: Template
    context: int
    misfits: str
    form: str

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
        return max(ID * self.tokenizer.vocab, DIGITS + 1)

    @property
    def eot(self) -> int:
        """The fact that ends a document."""
        return ID * self.tokenizer.eot

    @property
    def fingerprint(self) -> str:
        """Hex hash of all that the facts depend on besides the rows."""
        facts = self.tokenizer.fingerprint, *self.template.facts, self.context, self.misfits
        return 2 * short_hash(self.form, 1, *facts)  # a shard's header has room for 32 bytes

    def encode(self, text: str) -> Ids:
        """Facts of a row, uint32 [n]; of one that is dropped, none or the fact that says why.

        `TemplateError` says why it can't be encoded.
        """
        if _is_misfit(text):
            return np.array([UNUSABLE], np.uint32)
        try:
            return self._facts(Preference.load(text))
        except RecursionError:  # it was read with fewer calls on the stack
            error = SampleError("its values are nested too deeply")
        except SampleError as found:
            error = found
        if self.misfits == "drop":
            fact = error.fact if isinstance(error, Dropped) else REFUSED
            return np.array([] if fact is None else [fact], np.uint32)
        raise TemplateError(f"{error.args[0]}; data.misfits = drop leaves such rows out", text) from None

    def _facts(self, one: Preference) -> Ids:
        samples = [self.template.sample(talk, apart=True) for talk in one.answers]
        prompts = [ids[: int(learnt.argmax())] for ids, learnt in samples]
        if not len(prompts[0]):
            raise SampleError("its prompt comes to no token")
        if not np.array_equal(prompts[0], prompts[-1]):
            raise SampleError(
                "the template writes one prompt before the chosen answer, another before the rejected one"
            )
        if len(samples) == 2 and np.array_equal(samples[0][0], samples[1][0]):
            raise Dropped("its two answers come to the same tokens, so that nothing is preferred", ALIKE)
        count = sum(len(ids) for ids, _ in samples)
        if count > self.context:
            both = "prompt and answer, twice, have" if len(samples) == 2 else "prompt and answer have"
            raise Dropped(f"{both} {count} tokens, more than a row's {self.context}: shorten them", TOO_LONG)
        worse = [False, True] if len(samples) == 2 else [not one.value]
        parts = [
            ID * ids[start:] + WORSE * np.uint32(bad) + LEARNT * learnt[start:]
            for (ids, learnt), start, bad in zip(samples, (0, len(prompts[0])), worse, strict=False)
        ]
        return np.concatenate([spelled(one.value if len(samples) == 2 else None), *parts]).astype(np.uint32)

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`."""
        self.tokenizer.save(folder)


def spelled(margin: float | None) -> Ids:
    """A document's first facts: how many digits follow, and those of the margin."""
    digits = [] if margin is None else [int(digit, 16) for digit in struct.pack(">d", margin).hex()]
    return np.array([len(digits), *digits], np.uint32)


def read_margin(facts: npt.NDArray[Any]) -> float | None:
    """What `spelled` wrote at the beginning of a document."""
    if not facts[0]:
        return None
    raw = bytes.fromhex("".join(f"{int(digit):x}" for digit in facts[1 : 1 + DIGITS]))
    return float(struct.unpack(">d", raw)[0])


def open_encoder(config: RunConfig, tokenizer: Tokenizer) -> PreferenceEncoder:
    """The coder of a run's preferences. Raises `UserError` where its template can't be used with its tokenizer."""
    template = open_template(config.data.chat_template, tokenizer, config.data.chat_date)
    check_row_tokens(config)
    return PreferenceEncoder(template, config.row_tokens, config.data.misfits, config.data.format)

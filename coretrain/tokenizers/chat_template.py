"""Conversations to text by a model's chat template, and that text to tokens of which some are the assistant's own.

A template is rendered as transformers does it: Jinja in a sandbox, with the same settings; but its clock stands still,
so that the same conversations give the same data on every day. What users write is never a special token, whatever it
looks like: before rendering, special tokens in contents are put behind a placeholder.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.data import CHAT_DATE
from coretrain.tokenizers.json_tokenizer import SPECIAL_FORM
from coretrain.tokenizers.tokenizer import Ids, Tokenizer

Message = dict[str, str]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token + '\n' }}{% else %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
"""For a tokenizer that has no special token but the end of a text."""
QUESTION, ANSWER = "Is it 4711?", "It is 1174."
TRIAL: list[Message] = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
"""What a template is tried out with."""
FIRST_PLACEHOLDER = 0xF0000  # Unicode's private plane: what comes after the mark is the special token's number


class TemplateError(Exception):
    """Why a conversation can't be turned into tokens by this template; `args[0]` is the reason."""


class SampleError(TemplateError):
    """A conversation that can't be trained on as it is, where others can: `data.misfits` says what becomes of it."""


class Template:
    """A chat template with the tokenizer whose special tokens it uses; cheap to send to another process."""

    def __init__(self, source: str, name: str, tokenizer: Tokenizer, date: datetime.date = CHAT_DATE) -> None:
        self.source, self.name, self.tokenizer, self.date = source, name, tokenizer, date

    def __reduce__(self) -> tuple[Any, ...]:
        return Template, (self.source, self.name, self.tokenizer, self.date)  # compiled Jinja can't be pickled

    @property
    def facts(self) -> tuple[str, ...]:
        """All that a text depends on besides the conversation: the source, and the date where it may be asked for."""
        return (self.source, self.date.isoformat()) if "strftime_now" in self.source else (self.source,)

    @cached_property
    def _compiled(self) -> Any:
        return _environment(self.date).from_string(self.source)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        names = sorted(self.tokenizer.specials, key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, names)))

    @cached_property
    def _roles(self) -> dict[str, str]:
        names = {token: name for name, token in self.tokenizer.specials.items()}
        return {f"{role}_token": names[token] for role, token in self.tokenizer.roles.items() if token in names}

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text of `messages`; with `prompt`, the head of the assistant's next turn after it.

        Raises `TemplateError` with what the template says against them.
        """
        try:
            text = self._compiled.render(messages=messages, add_generation_prompt=prompt, tools=None, **self._roles)
            return str(text)
        except Exception as error:  # a template is foreign code: 1/0, a macro that calls itself, a range too long
            reason = str(error) or type(error).__name__
            raise TemplateError(f"{self.name} refuses it ({reason})") from None

    def check(self) -> None:
        """Raise `UserError` or `TemplateError` where it is no Jinja, where the tokenizer lacks a special token that it
        writes, where it leaves out what is said, or writes turns that can't be told apart."""
        from jinja2 import TemplateSyntaxError

        try:
            self._compiled  # noqa: B018  # compiled now, for the error
        except TemplateSyntaxError as error:
            raise UserError(
                "tokenizers/template-not-jinja",
                f"{self.name} is no Jinja template (line {error.lineno}: {error.message})",
            ) from None
        except Exception as error:  # nested too deeply, or a filter that isn't there
            raise UserError(
                "tokenizers/template-not-compiled", f"{self.name} can't be compiled ({error or type(error).__name__})"
            ) from None
        try:
            text = self.render(TRIAL, prompt=True)
        except TemplateError as error:
            raise UserError(
                "tokenizers/template-trial-failed",
                f"a question and its answer: {error}: give another data.chat_template",
            ) from None
        missing = [word for word in SPECIAL_FORM.findall(text) if word not in self.tokenizer.specials]
        if missing:
            raise UserError(
                "tokenizers/template-token-missing",
                f"{self.name} writes {missing[0]}, for which tokenizer {self.tokenizer.name} has no special token: "
                "give a data.chat_template of its own, or its model's data.tokenizer",
            )
        head, answer = self._spans(TRIAL)
        if QUESTION not in head or ANSWER not in answer:
            what = "the question" if QUESTION not in head else "the answer"
            raise TemplateError(
                f"{self.name} leaves out {what} of a question and its answer: contents are texts here, no parts"
            )
        theirs = self.tokenizer.read(text)
        if theirs is not None and not np.array_equal(theirs, self.ids(text)):
            raise TemplateError(
                f"{self.name} puts blanks beside special tokens of {self.tokenizer.name} that swallow them"
            )

    def ids(self, text: str, mark: str = "", inner: bool = False) -> Ids:
        """Token ids of a rendered text, uint32 [n]: special tokens where the template wrote them, else text.

        With the `mark` of `_hide`, what that has put away is text again. An `inner` text stands after a special token.
        """
        names = list(self.tokenizer.specials)

        def encoded(piece: str, inner: bool) -> Ids:
            if mark and mark in piece:
                piece = re.sub(f"{mark}(.)", lambda found: names[ord(found[1]) - FIRST_PLACEHOLDER], piece)
            return self.tokenizer.encode_inner(piece) if inner else self.tokenizer.encode(piece)

        parts, at = [], 0
        for match in self._specials.finditer(text):
            special = np.array([self.tokenizer.specials[match[0]]], np.uint32)
            parts += [encoded(text[at : match.start()], inner), special]
            at, inner = match.end(), True
        return np.concatenate([*parts, encoded(text[at:], inner)]).astype(np.uint32)

    def question(self, text: str) -> list[int]:
        """Ids after which the answer to `text` comes."""
        mark, hidden = self._hide([{"role": "user", "content": text}])
        return [int(token) for token in self.ids(self.render(hidden, prompt=True), mark)]

    def end(self) -> int:
        """The special token that ends an assistant's turn."""
        return int(self.ids(self._spans(TRIAL)[-1])[-1])

    def sample(self, messages: Sequence[Message]) -> tuple[Ids, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Ids of a conversation up to its last answer's end, and which of them are the assistant's, both [n].

        An answer is what stands between the head of its turn and the last special token that the template writes in
        it, that one included. Raises `TemplateError`, or `SampleError` where an answer's first token would reach into
        its head.
        """
        mark, hidden = self._hide(messages)
        spans, turns, targets = self._spans(hidden), [], []
        for number in range(0, len(spans), 2):  # a turn ends with a special token: the next one's ids are its own
            head, answer = spans[number : number + 2]
            given, ids = (self.ids(text, mark, inner=number > 0) for text in (head, head + answer))
            if not np.array_equal(given, ids[: len(given)]):
                raise SampleError(
                    "an answer begins with characters that form one token with the text before them: strip it"
                )
            turns.append(ids)
            targets.append(np.arange(len(ids)) >= len(given))
        return np.concatenate(turns), np.concatenate(targets)

    def _spans(self, messages: Sequence[Message]) -> list[str]:
        """The text in turns: what the assistant is given, what it says, what it is given then, and so on."""
        whole, spans, at = self.render(messages), [], 0
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            head, turn = self.render(messages[:number], prompt=True), self.render(messages[: number + 1])
            if not (whole.startswith(turn) and turn.startswith(head) and len(head) >= at):
                raise TemplateError(
                    f"{self.name} writes a turn otherwise once others follow: its answers can't be told apart"
                )
            ends = [match.end() for match in self._specials.finditer(turn, len(head))]
            if not ends:
                raise TemplateError(f"{self.name} ends an answer with no special token to stop at")
            spans += [whole[at : len(head)], whole[len(head) : ends[-1]]]
            at = ends[-1]
        return spans

    def _hide(self, messages: Sequence[Message]) -> tuple[str, list[Message]]:
        """`messages` with each special token in a content as a mark and a character; and the mark, in no content."""
        said = "".join(message["content"] for message in messages)
        free = [chr(code) for code in range(0xFDD0, 0xFDF0) if chr(code) not in said]  # noncharacters of Unicode
        if not free:
            raise SampleError("it holds all of Unicode's noncharacters U+FDD0 to U+FDEF, of which one must be free")
        mark = free[0]
        numbers = {name: number for number, name in enumerate(self.tokenizer.specials)}

        def hidden(match: re.Match[str]) -> str:
            return mark + chr(FIRST_PLACEHOLDER + numbers[match[0]])

        return mark, [message | {"content": self._specials.sub(hidden, message["content"])} for message in messages]


def open_template(path: str | None, tokenizer: Tokenizer, date: datetime.date = CHAT_DATE) -> Template:
    """The template that `data.chat_template` names, or the default one of the tokenizer. Raises `UserError`."""
    if path is None:
        chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.specials.keys()
        source, name = (CHATML, "the ChatML template") if chatml else (PLAIN, "the plain chat template")
        return checked(Template(source, name, tokenizer, date))
    try:
        source = typed_path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise UserError(
            "tokenizers/template-unreadable",
            f"data.chat_template = {path} can't be read: give a file of a Jinja template",
        ) from None
    return checked(Template(source, f"chat template {path}", tokenizer, date))


def checked(template: Template) -> Template:
    """`template`, compiled and tried out. Raises `UserError` naming it where it is no Jinja or can't be used."""
    try:
        template.check()
    except TemplateError as error:
        raise UserError("tokenizers/template-refused", f"{error}: give another data.chat_template") from None
    return template


def turn_end(source: str | None, tokenizer: Tokenizer) -> int | None:
    """The special token that ends an assistant's turn by the template `source`; None without one that can be used."""
    if source is None:
        return None
    try:
        return checked(Template(source, "the chat template", tokenizer)).end()
    except UserError:
        return None


def _environment(date: datetime.date) -> Any:
    """Jinja as transformers sets it up: a sandbox that can change nothing, blocks without their line ends."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what transformers masks; here the turns tell it, and the mark says nothing."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own attribute

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = date.strftime
    return environment

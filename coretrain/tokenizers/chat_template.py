"""Conversations to text by a model's chat template, and that text to tokens of which some are the assistant's own.

A template is rendered as transformers does it: Jinja in a sandbox, with the same settings; but its clock stands still,
so that the same conversations give the same data on every day. What users write is never a special token, whatever it
looks like: before rendering, special tokens in contents are put behind a placeholder. And nothing of what a
conversation holds is dropped: a field that the template doesn't write is a reason not to use the conversation.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.data import CHAT_DATE
from coretrain.tokenizers.conversation import LABELS, NOTES, REASONING, Conversation, named_reasoning
from coretrain.tokenizers.jinja import TemplateError, environment, variables_of
from coretrain.tokenizers.json_tokenizer import SPECIAL_FORM
from coretrain.tokenizers.tokenizer import FURTHER_END, Ids, Tokenizer

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
BARE_NAME = "bare"
"""Names `BARE` as data.chat_template: a file of that name is ./bare."""
BARE = (
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
"""No template: a prompt, its completion and the end of a text, nothing between them."""
QUESTION, ANSWER = "Is it 4711?", "It is 1174."
TRIAL = Conversation([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}])
"""What a template is tried out with."""
LONGEST = 2**20
"""Characters of a template."""
BLANKS = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's white space, which is less than Python's."""
FIRST_PLACEHOLDER = 0xF0000  # Unicode's private plane: what comes after the mark is the special token's number
OTHER_WORDS = "Something else, 1147."
INSIDE = "\0"
"""What stands before a text that begins neither a document nor behind a special token."""


class SampleError(TemplateError):
    """A conversation that can't be trained on as it is, where others can: `data.misfits` says what becomes of it."""

    def __init__(self, reason: str, fits_not: bool = False) -> None:
        """`fits_not` where it is its length or its first token, and not what the template makes of it."""
        super().__init__(reason)
        self.fits_not = fits_not


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
        return environment(self.date).from_string(self.source)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that it reads and doesn't set itself."""
        return variables_of(self.source, self.date)

    @cached_property
    def _specials(self) -> re.Pattern[str]:
        names = sorted(self.tokenizer.specials, key=lambda name: (-len(name), name))
        return re.compile("|".join(map(re.escape, names)))

    @cached_property
    def _roles(self) -> dict[str, str]:
        names = {token: name for name, token in self.tokenizer.specials.items()}
        held = {role: token for role, token in self.tokenizer.roles.items() if not role.startswith(FURTHER_END)}
        return {f"{role}_token": names[token] for role, token in held.items() if token in names}

    def render(self, talk: Conversation, prompt: bool = False) -> str:
        """The text of `talk`; with `prompt`, the head of the assistant's next turn after it.

        Raises `TemplateError` with what the template says against it.
        """
        given = {
            "messages": [named_reasoning(message) for message in talk.messages],
            "tools": talk.tools,
            "documents": talk.documents,
            "add_generation_prompt": prompt,
        }
        try:
            return str(self._compiled.render(**self._roles | talk.variables | given))
        except Exception as error:  # a template is foreign code: 1/0, a macro that calls itself, a range too long
            reason = str(error) or type(error).__name__
            raise TemplateError(f"{self.name} refuses it ({reason})") from None

    def check(self) -> None:
        """Raise `UserError` or `TemplateError` where it is no Jinja, where the tokenizer lacks a special token that it
        writes, where it leaves out what is said, or writes turns that can't be told apart."""
        from jinja2 import TemplateSyntaxError

        if len(self.source) > LONGEST:
            raise UserError(
                "tokenizers/template-too-long",
                f"{self.name} has {len(self.source):,} characters: no template has more than {LONGEST:,}; give another",
            )
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
        head, answer = self._spans(TRIAL, self.render(TRIAL))
        if QUESTION not in head or ANSWER not in answer:
            what = "the question" if QUESTION not in head else "the answer"
            raise TemplateError(
                f"{self.name} leaves out {what} of a question and its answer: contents are texts here, no parts"
            )
        theirs = self.tokenizer.read(text)
        if theirs is not None and not np.array_equal(theirs, self.ids(text)):
            raise TemplateError(
                f"{self.name} writes what tokenizer {self.tokenizer.name} reads otherwise beside special tokens"
            )

    def ids(self, text: str, mark: str = "", after: str = "") -> Ids:
        """Token ids of a rendered text, uint32 [n]: special tokens where the template wrote them, else text.

        With the `mark` of `_hide`, what that has put away is text again. `after` is the special token before the text,
        if there is one. Blanks beside a special token that swallows them have no ids.
        """
        names, swallows = list(self.tokenizer.specials), self.tokenizer.swallows

        def encoded(piece: str, before: str, behind: str) -> Ids:
            piece = piece.lstrip(BLANKS) if swallows.get(before, (False, False))[1] else piece
            piece = piece.rstrip(BLANKS) if swallows.get(behind, (False, False))[0] else piece
            if mark and mark in piece:
                piece = re.sub(f"{mark}(.)", lambda found: names[ord(found[1]) - FIRST_PLACEHOLDER], piece)
            return self.tokenizer.encode_inner(piece) if before else self.tokenizer.encode(piece)

        parts, at = [], 0
        for match in self._specials.finditer(text):
            special = np.array([self.tokenizer.specials[match[0]]], np.uint32)
            parts += [encoded(text[at : match.start()], after, match[0]), special]
            at, after = match.end(), match[0]
        return np.concatenate([*parts, encoded(text[at:], after, "")]).astype(np.uint32)

    def question(self, text: str) -> list[int]:
        """Ids after which the answer to `text` comes."""
        mark, hidden = self._hide(Conversation([{"role": "user", "content": text}]))
        return [int(token) for token in self._head(mark, hidden)]

    def _head(self, mark: str, hidden: Conversation) -> Ids:
        asked = self.render(hidden, prompt=True)
        _refuse_escaped(asked, mark)
        return self.ids(asked, mark)

    def asked(self, talk: Conversation) -> Ids:
        """Ids after which the assistant's answer to a conversation comes, uint32 [n], as `sample` has them before it.

        Raises `SampleError` where the template refuses the conversation, or leaves out something of it.
        """
        if self._is_bare(talk, "user"):
            return self.ids(talk.messages[0]["content"])
        try:
            mark, hidden = self._hide(talk)
            self._check_written(hidden, self.render(hidden))
            return self._head(mark, hidden)
        except TemplateError as error:
            raise error if isinstance(error, SampleError) else SampleError(error.args[0]) from None
        except RecursionError:
            raise SampleError("its values are nested too deeply") from None

    def end(self) -> int:
        """The special token that ends an assistant's turn."""
        return int(self.ids(self._spans(TRIAL, self.render(TRIAL))[-1])[-1])

    def sample(self, talk: Conversation, apart: bool = False) -> tuple[Ids, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Ids of a conversation up to its last answer's end, and which of them are to be learnt, both [n].

        An answer is what stands between the head of its turn and the last special token that the template writes in
        it, that one included. Raises `SampleError` where the template refuses the conversation, leaves out something
        of it or writes its turns so that answers can't be told apart; or where an answer's first token would reach
        into its head: with `apart`, head and answer are then encoded one by one, as a model that answers writes them.
        Without a template (`BARE`) a prompt and its completion always are.
        """
        if (pair := self._bare(talk)) is not None:
            return pair
        try:
            mark, hidden = self._hide(talk)
            whole = self.render(hidden)
            self._check_written(hidden, whole)
            spans, turns, targets = self._spans(hidden, whole), [], []
        except TemplateError as error:  # the trial went well: it is this conversation that the template can't write
            raise SampleError(error.args[0]) from None
        except RecursionError:
            raise SampleError("its values are nested too deeply") from None
        after = ""
        for number in range(0, len(spans), 2):  # a turn ends with a special token: the next one's ids are its own
            head, answer = spans[number : number + 2]
            _refuse_escaped(head + answer, mark)
            given, ids = (self.ids(text, mark, after) for text in (head, head + answer))
            after = self._specials.findall(answer)[-1]
            if not np.array_equal(given, ids[: len(given)]) and apart:
                ids = np.concatenate([given, self.ids(answer, mark, INSIDE)])
            elif not np.array_equal(given, ids[: len(given)]):
                raise SampleError(
                    "an answer begins with characters that form one token with the text before them: strip it", True
                )
            turns.append(ids)
            targets.append(np.arange(len(ids)) >= len(given))
        return np.concatenate(turns), np.concatenate(targets)

    def _bare(self, talk: Conversation) -> tuple[Ids, np.ndarray[Any, np.dtype[np.bool_]]] | None:
        """What `sample` gives for a prompt and its completion alone, by `BARE`."""
        if not self._is_bare(talk, "user", "assistant"):
            return None
        asked, said = (message["content"] for message in talk.messages)
        head, answer = self.ids(asked), self.ids(said + self._roles["eos_token"], after=INSIDE)
        return np.concatenate([head, answer]), np.arange(len(head) + len(answer)) >= len(head)

    def _is_bare(self, talk: Conversation, *roles: str) -> bool:
        """Whether there is no template and nothing but plain messages of these roles, which needn't be rendered."""
        return (
            self.source == BARE
            and not (talk.tools or talk.documents or talk.variables or talk.unlearnt)
            and [message["role"] for message in talk.messages] == list(roles)
            and all(message.keys() == {"role", "content"} for message in talk.messages)
            and not talk.holds(self._specials.search)
        )

    def _spans(self, talk: Conversation, whole: str) -> list[str]:
        """The text in turns: what the assistant is given, what it says, what it is given then, and so on.

        Answers that aren't learnt are among what it is given.
        """
        spans, at = [], 0
        for number, message in enumerate(talk.messages):
            if message["role"] != "assistant" or number in talk.unlearnt:
                continue
            head, last = self.render(talk.upto(number), prompt=True), number + 1 == len(talk.messages)
            turn = whole if last else self.render(talk.upto(number + 1))
            if not turn.startswith(head):
                raise TemplateError(
                    f"{self.name} begins answer {number + 1} otherwise than the head that it writes for one to come"
                )
            if not (whole.startswith(turn) and len(head) >= at):
                raise TemplateError(
                    f"{self.name} writes a turn otherwise once others follow: its answers can't be told apart"
                )
            ends = [match.end() for match in self._specials.finditer(turn, len(head))]
            if not ends:
                raise TemplateError(f"{self.name} ends an answer with no special token to stop at")
            spans += [whole[at : len(head)], whole[len(head) : ends[-1]]]
            at = ends[-1]
        return spans

    def _check_written(self, talk: Conversation, whole: str) -> None:
        """Raise `TemplateError` naming the first thing in `talk` that the template doesn't write into its text."""
        for name, less in (("tools", replace(talk, tools=None)), ("documents", replace(talk, documents=None))):
            if getattr(talk, name) and self._same(whole, less):
                raise TemplateError(f"{self.name} leaves out {name}: give one that writes them")
        for name in talk.variables:
            if name not in self.variables:
                raise TemplateError(f"{self.name} doesn't read {name} of chat_template_kwargs: leave it out")
        for number, message in enumerate(talk.messages):
            left_out = self._left_out(talk, number, message, whole)
            if left_out:
                raise TemplateError(
                    f"{self.name} leaves out {left_out} of message {number + 1} ({message['role']}): give one that "
                    "writes it, or take it out of the row"
                )

    def _left_out(self, talk: Conversation, number: int, message: dict[str, Any], whole: str) -> str | None:
        """The first field of a message that isn't written, if one isn't. Without it the text is the same."""
        content = message.get("content", "").strip()
        if content and content not in whole and self._same(whole, talk.with_message(number, {"content": OTHER_WORDS})):
            return "content"
        passed_over = ("role", "content", *NOTES, *(LABELS if message["role"] == "tool" else ()))
        for name in message:
            if name in passed_over or message[name] in ("", [], {}):
                continue
            together = REASONING if name in REASONING else (name,)
            if self._same(whole, talk.with_message(number, dict.fromkeys(together))):
                return name
        return None

    def _same(self, text: str, other: Conversation) -> bool:
        try:
            return self.render(other) == text
        except TemplateError:  # it misses what was taken away: it reads it
            return False

    def _hide(self, talk: Conversation) -> tuple[str, Conversation]:
        """`talk` with each special token in it as a mark and a character; and the mark, which is nowhere in it.

        Where there is none, the mark is empty.
        """
        if not talk.holds(self._specials.search):
            return "", talk
        said = talk.dump()
        free = [code for code in range(0xFDD0, 0xFDF0) if f"\\u{code:04x}" not in said]  # noncharacters of Unicode
        if not free:
            raise SampleError("it holds all of Unicode's noncharacters U+FDD0 to U+FDEF, of which one must be free")
        mark = chr(free[0])
        numbers = {name: number for number, name in enumerate(self.tokenizer.specials)}

        def hidden(match: re.Match[str]) -> str:
            return mark + chr(FIRST_PLACEHOLDER + numbers[match[0]])

        return mark, talk.changed(lambda text: self._specials.sub(hidden, text))


def _refuse_escaped(text: str, mark: str) -> None:
    """A template that writes JSON in ASCII turns the mark of a hidden special token into `\\ufdd0`."""
    if mark and f"\\u{ord(mark):04x}" in text:
        raise SampleError("it holds a special token's name, which the template writes in JSON's ASCII form")


def open_template(path: str | None, tokenizer: Tokenizer, date: datetime.date = CHAT_DATE) -> Template:
    """The template that `data.chat_template` names, or the default one of the tokenizer. Raises `UserError`."""
    if path is None:
        chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.specials.keys()
        source, name = (CHATML, "the ChatML template") if chatml else (PLAIN, "the plain chat template")
        return checked(Template(source, name, tokenizer, date))
    if path == BARE_NAME:
        return checked(Template(BARE, "the bare chat template", tokenizer, date))
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

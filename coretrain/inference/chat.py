"""A conversation in the terminal: what is typed is asked, or is a command; answers are shown as they come."""

from __future__ import annotations

import queue
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.contract.sampling import Sampling
from coretrain.inference.answers import Answer, Token
from coretrain.inference.dialogue import SETTINGS, Asking, Dialogue
from coretrain.inference.engine import Engine
from coretrain.inference.terminal import Lines, harmless, open_lines
from coretrain.runs.chat import open_chat
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import well_formed
from coretrain.training.stack import Stack

COMMANDS = {
    "/help": "these lines",
    "/reset": "forget what was said",
    "/undo": "take the last question back, with its answer",
    "/edit": "change the last question and ask it anew",
    "/retry": "answer the last question anew, with the next seed",
    "/system": "TEXT: what the system says first (- for nothing)",
    "/temperature": "T: 0 is greedy",
    "/top_p": "P: keep this much probability",
    "/top_k": "K: keep the k likeliest tokens (0: all)",
    "/tokens": "N: of an answer at most (0: as many as fit)",
    "/seed": "N: of the draws",
    "/save": "FILE: write the conversation, as a row to train on",
    "/quit": "end, as Ctrl-D does",
}
KEYS = """\
Alt-Enter begins a new line of a question. Ctrl-C stops an answer, and what was
said of it stays. A question that begins with a slash is typed with two."""


def converse(
    stack: Stack, run: Path, sampling: Sampling, tokens: int | None, context: int, history: Path | None = None
) -> None:
    """Talk until the end of input. Raises `UserError` where the run has no chat template, or the history no place."""
    chat = Chat(stack, run, Dialogue(sampling, tokens), context)
    with chat.engine:
        chat.talk(open_lines(COMMANDS, chat.status, history))


class Chat:
    """A run that is talked to, on one row of a cache, in which the earlier turns stay."""

    def __init__(self, stack: Stack, run: Path, dialogue: Dialogue, context: int) -> None:
        self.name, self.dialogue, self.context = run.resolve().name, dialogue, context
        self.tokenizer = load_tokenizer(run)
        self.template, self.ends = open_chat(run, self.tokenizer)
        self.engine = Engine(stack, rows=1, slots=context, kept=context)
        self.used, self.speed = 0, 0.0

    def status(self) -> str:
        """The line below what is typed."""
        sampling = self.dialogue.sampling
        said = [self.name, f"temperature {sampling.temperature:g}", f"{self.used} of {self.context} tokens"]
        return " · ".join([*said, *([f"{self.speed:.1f} tokens/s"] if self.speed else []), "/help"])

    def talk(self, lines: Lines) -> None:
        """Ask what is typed, and obey commands, up to the end of input, /quit, or Ctrl-C where nothing is said."""
        given = ""
        while True:
            try:
                text, edits = well_formed(lines.read(given)).strip(), bool(given)
            except (EOFError, KeyboardInterrupt):
                print(flush=True)
                return
            given = ""
            try:
                if text == "/quit":
                    return
                if not text:
                    continue
                if not text.startswith("/") or text.startswith("//"):
                    if edits:
                        self.dialogue.undo()
                    self.ask(text.removeprefix("/") if text.startswith("//") else text)
                else:
                    given = self.obey(text, lines)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)

    def obey(self, text: str, lines: Lines) -> str:
        """Carry a command out; the text that the next line begins with. Raises `UserError` for one that can't be."""
        word, _, rest = text.partition(" ")
        rest, d = rest.strip(), self.dialogue
        name = word[1:].replace("-", "_")
        if name in SETTINGS or name == "system":
            self._tell(d.change(name, rest))
        elif word == "/help":
            width = max(map(len, COMMANDS))
            self._tell("\n".join([*(f"{name:<{width}}  {says}" for name, says in COMMANDS.items()), KEYS]))
        elif word == "/reset":
            d.reset()
            self._tell("forgotten: the next question is the first")
        elif word == "/undo":
            self._tell(f"taken back: {_short(d.undo())}")
        elif word == "/retry":
            question = d.undo()
            d.sampling = replace(d.sampling, seed=d.sampling.seed + 1)
            self._tell("greedy: the same again" if d.sampling.temperature == 0 else f"seed is {d.sampling.seed}")
            self.ask(question)
        elif word == "/edit":
            if rest:
                d.undo()
                self.ask(rest)
            elif lines.editing:
                return d.last()
            else:
                raise UserError("inference/edit-without-text", "/edit wants the whole question: /edit TEXT")
        elif word == "/save":
            if not rest:
                raise UserError("inference/save-without-name", "/save wants a name: /save FILE")
            self._tell(d.save(rest))
        else:
            raise UserError("inference/command-unknown", f"there is no {word}: /help has all commands")
        return ""

    def ask(self, text: str) -> None:
        """Ask, and show the answer as it comes. A question that can't be answered isn't kept."""
        d = self.dialogue
        d.ask(text)
        try:
            asking = d.asking(self.template, self.context)
        except UserError:
            d.undo()
            raise
        if asking.left_out:
            d.messages = d.messages[asking.left_out :]
            self._tell(f"the context is full: the oldest {asking.left_out} messages are left out from here on")
        said, answer = self._answered(asking)
        if said.strip():
            d.answer(said)
        else:
            d.undo()  # a turn without an answer is none that a template writes
        if answer.reason == "error":
            error = answer.error
            raise error if isinstance(error, UserError) else UserError("inference/answer-failed", f"no answer: {error}")
        if not said.strip():
            self._tell("nothing was said, and the question is taken back")
        elif answer.reason == "cancelled":
            self._tell("stopped")
        elif answer.reason == "length":
            self._tell(f"cut at {len(answer.ids)} tokens: /tokens N for more")
        self.used = len(asking.ids) + len(answer.ids)
        spent = answer.seconds - answer.first
        self.speed = (len(answer.ids) - 1) / spent if len(answer.ids) > 1 and spent > 0 else self.speed

    def _answered(self, asking: Asking) -> tuple[str, Answer]:
        """What was said, up to its end or Ctrl-C, and what the engine says of it."""
        told: queue.SimpleQueue[Token | None] = queue.SimpleQueue()
        put: Callable[[Token | None], None] = told.put
        handle = self.engine.submit(
            asking.ids, self.dialogue.sampling, asking.tokens, self.ends, on_token=put, on_end=lambda _: put(None)
        )
        decoder = self.tokenizer.stream()
        while True:
            try:
                token = told.get()
                piece = decoder.finish() if token is None else decoder.push(token.id)
                print(harmless(piece), end="\n" if token is None else "", flush=True)
                if token is None:
                    answer = handle.wait()
                    return self.tokenizer.decode(answer.ids), answer
            except KeyboardInterrupt:
                handle.cancel()

    def _tell(self, text: str) -> None:
        """What isn't the model's."""
        dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
        print(f"{dim}({text}){plain}" if "\n" not in text else text, flush=True)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."

"""Lines that are typed: with editing, history and completion where prompt_toolkit is there, else by `input`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from coretrain.base.errors import UserError
from coretrain.base.streams import ready_input

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys, but for new lines and tabs."""


class Lines(Protocol):
    """Where what is typed comes from."""

    editing: bool
    """Whether a line can be handed out to be changed."""

    def read(self, given: str = "") -> str:
        """One of them, which may have several lines; with `given` to be changed. Empty where it was taken back. Raises
        EOFError at the end, and KeyboardInterrupt."""


def harmless(text: str) -> str:
    """Text of a model without what a terminal would obey."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def open_lines(commands: Mapping[str, str], status: Callable[[], str], history: Path | None) -> Lines:
    """The terminal's lines. `commands` have their help, `status` is shown below the line; `history` is a file in which
    lines are kept, which needs prompt_toolkit. Raises `UserError` where it can't be had."""
    if importlib.util.find_spec("prompt_toolkit") is not None:
        return edited_lines(commands, status, history)
    if history is not None:
        raise UserError(
            "inference/history-needs-prompt-toolkit",
            "--history is kept by prompt_toolkit, which isn't installed: pip install 'twintrain[chat]'",
        )
    return PlainLines()


class PlainLines:
    """By `input`, with the arrow keys where Python has readline."""

    editing = False

    def __init__(self) -> None:
        ready_input()
        with contextlib.suppress(ImportError):  # Python may be built without it
            importlib.import_module("readline")

    def read(self, given: str = "") -> str:
        """One line; an empty one ends."""
        line = input("> ")
        if not line.strip():
            raise EOFError
        return line


def edited_lines(
    commands: Mapping[str, str],
    status: Callable[[], str],
    history: Path | None,
    source: Any = None,
    output: Any = None,
) -> Lines:
    """By prompt_toolkit. `source` and `output` are its own, for tests."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.styles import Style

    class Commands(Completer):
        """The commands, at the beginning of a line that begins with a slash."""

        def get_completions(self, document: Any, complete_event: Any) -> Iterable[Any]:
            typed = document.text_before_cursor
            if typed.startswith("/") and not re.search(r"\s", typed):
                for name, says in commands.items():
                    if name.startswith(typed):
                        yield Completion(name, -len(typed), display_meta=says)

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    if history is not None:
        try:
            history.touch(mode=0o600)  # what was typed is the user's alone
        except OSError as error:
            raise UserError(
                "inference/history-unwritable", f"--history {history} can't be written ({error.strerror}): give a file"
            ) from None
    session: Any = PromptSession(
        history=InMemoryHistory() if history is None else FileHistory(str(history)),
        completer=Commands(),
        complete_while_typing=True,
        key_bindings=keys,
        prompt_continuation=lambda width, number, soft: "  ",
        bottom_toolbar=lambda: FormattedText([("class:bottom-toolbar", status())]),
        style=Style.from_dict({"prompt": "bold", "bottom-toolbar": "noreverse fg:ansibrightblack"}),
        input=source,
        output=output,
        reserve_space_for_menu=6,
    )

    class EditedLines:
        editing = True

        def read(self, given: str = "") -> str:
            """One of them; Alt-Enter begins a new line of it, and Ctrl-C takes back what is typed."""
            while True:
                try:
                    text = str(session.prompt([("class:prompt", "> ")], default=given))
                except KeyboardInterrupt:
                    if not session.default_buffer.text.strip():
                        raise
                    return ""
                if text.strip() or given:
                    return text

    return EditedLines()

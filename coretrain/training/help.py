"""What `--help` says of a config: every field, as a table or, on a narrow terminal, one below the other.

Only the config is imported for it: no framework, and nothing that reads a run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from coretrain.config.load import (
    describe_type,
    fields,
    load_config,
    presets,
)

COLUMNS: tuple[tuple[str, int | None], ...] = (
    ("field", 34),
    ("type, limits", 30),
    ("default run", 18),
    ("meaning", None),
)
NARROW = 110
"""Columns of a terminal below which there is no room for a field's meaning beside the rest."""
NO_TERMINAL = 140
"""Columns of what goes to a file, where it is searched line by line."""
EXAMPLES = {
    "": "the default run",
    "gpt2-124m --data.source stdlib": "a preset on this Python's own library: no download",
    "my.toml --optimizer.lr=3e-4 --output runs/my": "a file of yours, one field changed, its folder named",
    "--resume runs/my --train.updates 2000": "goes on, for longer",
}
OPTIONS = {
    "--from": "begin a new run with the weights of another, of either stack or imported; --train.start in short",
    "--output": "folder of the run; default runs/NAME-TIME",
    "--resume": "go on with a run, whichever stack wrote it; its config is kept, overrides apply on top",
    "--spawn": "start one process for each device of parallel here, on the CPU: a rehearsal of a cluster",
}


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether help is wanted, for which no stack is needed."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    return any(word in ("-h", "--help") for word in own)


def print_help(program: str, summary: str, more: Sequence[tuple[str, str]] = ()) -> None:
    """Print usage and every field: meaning, type and limits, default.

    `more` are options that `program` has on top, and what they do.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _columns())
    own = "".join(f" \\[{option}]" for option, _ in more)
    console.print(
        f"[bold]{program}[/] \\[CONFIG] \\[--from RUN] \\[--section.field VALUE]... \\[--output DIR] "
        f"\\[--resume RUN] \\[--spawn]{own}\n\n{summary}\n"
    )
    config = f"a preset ({', '.join(presets())}) or the path of a .toml file; default tiny, whose values are below"
    words = {"CONFIG": config, **{option.partition(" ")[0]: said for option, said in more}, **OPTIONS}
    narrow = console.width < NARROW
    for option, said in words.items():
        console.print(_below(option, "", said, console.width) if narrow else _beside(option, said))
    for head, doc, rows in _sections():
        console.print()
        title = f"{head}: {' '.join(doc.split())}"
        if narrow:
            console.print(Text(title, "italic"))
            for name, kind, default, meaning in rows:
                beside = f"  {kind}; " + (f"default {default}" if default else "unset")
                console.print(_below(name, beside, meaning, console.width))
            continue
        table = Table(title=title, title_justify="left", box=None)
        for column, width in COLUMNS:
            table.add_column(column, width=width, overflow="fold")
        for name, kind, default, meaning in rows:
            table.add_row(*map(Text, (name, kind, default or "unset", meaning)))
        console.print(table)
    console.print("\nexamples")
    longest = max(map(len, EXAMPLES))
    for line, said in EXAMPLES.items():
        typed = f"{program} {line}".rstrip()
        wide = Text(f"  {typed:<{len(program) + longest + 1}}  {said}")
        console.print(_below(typed, "", said, console.width) if narrow else wide)


def _columns() -> int:
    """Columns of the terminal that a pager shows this on, where there is one: `--help | less`."""
    with contextlib.suppress(ValueError):
        return max(20, int(os.environ.get("COLUMNS", "")))
    for stream in (2, 0):
        with contextlib.suppress(OSError):
            return os.get_terminal_size(stream).columns or NO_TERMINAL
    return NO_TERMINAL


def _sections() -> Iterator[tuple[str, str, list[tuple[str, str, str, str]]]]:
    """Each section's name and meaning, and of its fields name, type, value in the default run, and meaning."""
    chosen = load_config()
    found: dict[str, tuple[str, list[tuple[str, str, str, str]]]] = {}
    for name, (owner, leaf) in fields().items():
        row = (f"--{name}", describe_type(owner, leaf), _written(functools.reduce(getattr, name.split("."), chosen)))
        place = found.setdefault(name.rpartition(".")[0] or "run", ((owner.__doc__ or "").strip(), []))
        place[1].append((*row, owner.model_fields[leaf].description or ""))
    for head, (doc, rows) in found.items():
        yield head, doc, rows


def _written(value: Any) -> str:
    """A value as one types it; nothing where it is unset."""
    if isinstance(value, bool | tuple):
        return json.dumps(value)
    return "" if value is None else str(value)


def _beside(name: str, meaning: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=9)
    grid.add_column(overflow="fold")
    grid.add_row(Text(name), Text(meaning))
    return grid


def _below(name: str, beside: str, meaning: str, columns: int) -> Text:
    """A name and what stands beside it, and below them the meaning, each indented."""
    parts = [(name + beside, 2, 6), (meaning, 6, 6)]
    lines = [
        textwrap.fill(text, columns, initial_indent=" " * first, subsequent_indent=" " * then, break_on_hyphens=False)
        for text, first, then in parts
    ]
    text = Text("\n".join(filter(None, lines)))
    text.stylize("bold", 2, 2 + len(name))
    return text

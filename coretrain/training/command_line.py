"""The command line that both trainers share: a config, dotted overrides, --output, --resume, --help."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.load import (
    describe_type,
    fields,
    known_key,
    load_config,
    presets,
)
from coretrain.config.run import RunConfig
from coretrain.runs.folder import check_newest, resumed_config, run_of

PLACES = ("output", "resume")
FLAGS = ("spawn",)
WIDE: tuple[tuple[str, int | None], ...] = (("field", 34), ("type, limits", 30), ("default run", 18), ("meaning", None))
NARROW = 110
"""Columns of a terminal below which there is no room for a field's meaning beside the rest."""
EXAMPLES = """\
  {program}                                               the default run
  {program} gpt2-124m --data.source stdlib                a preset on this Python's own library: no download
  {program} my.toml --optimizer.lr=3e-4 --output runs/my  a file of yours, one field changed, its folder named
  {program} --resume runs/my --train.updates 2000         goes on, for longer"""


@dataclass(frozen=True)
class Command:
    """What a user asked for."""

    config: RunConfig
    output: Path | None
    resume: Path | None
    overrides: tuple[tuple[str, str], ...]
    spawn: bool = False
    """Start one process for each device of `parallel` here, on this machine's CPU."""


def parse(argv: Sequence[str], program: str, summary: str) -> Command:
    """Read `[CONFIG] [--section.field value]... [--output DIR] [--resume RUN] [--spawn]`.

    --help prints all fields and exits.
    Raises `UserError`, which names the field or the folder and the way out.
    """
    name: str | None = None
    given: list[tuple[str, str]] = []
    # the deepspeed launcher adds --local_rank, which the environment tells too
    words, spawn = [word for word in argv if not word.startswith("--local_rank=")], False
    if any(word in ("-h", "--help") for word in words):
        print_help(program, summary)
        sys.exit(0)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if not word:
                raise UserError(
                    "training/config-name-empty",
                    "the name of the config is empty: give a preset or a .toml file, or leave it out",
                )
            if name is not None:
                raise UserError("training/two-configs-given", f"two configs are given, {name} and {word}: give one")
            name = word
            continue
        key, equals, value = word[2:].partition("=")
        if key in FLAGS:
            if equals:
                raise UserError("training/flag-takes-no-value", f"--{key} takes no value")
            spawn = True
            continue
        if not equals:
            _known_option(key)
            if not words or words[0].startswith("--"):
                raise UserError(
                    "training/option-without-value",
                    f"--{key} has no value: give one after it, as in --train.updates 200 "
                    f"(or --{key}=VALUE where the value starts with --)",
                )
            value = words.pop(0)
        _known_option(key)
        if key in PLACES and (not value or any(key == other for other, _ in given)):
            raise UserError(
                "training/folder-empty-or-twice", f"--{key} is {'given twice' if value else 'empty'}: give one folder"
            )
        given.append((key, value))
    places = {key: typed_path(value) for key, value in given if key in PLACES}
    overrides = tuple((key, value) for key, value in given if key not in PLACES)
    output, resume = places.get("output"), places.get("resume")
    if resume is None:
        return Command(load_config(name, overrides), output, None, overrides, spawn)
    if name is not None:
        raise UserError(
            "training/config-with-resume",
            f"config {name} and --resume {resume} are given: a resumed run has its own config; leave one out",
        )
    if output is not None:
        raise UserError(
            "training/output-with-resume",
            "--output and --resume are given: a resumed run goes on in its own folder; leave one out",
        )
    folder = run_of(resume)
    check_newest(resume, folder)
    return Command(resumed_config(folder, overrides), None, folder, overrides, spawn)


def _known_option(key: str) -> None:
    if key in PLACES:
        return
    if near := difflib.get_close_matches(key, (*PLACES, *FLAGS, "help"), 1, 0.7):
        raise UserError("training/unknown-option", f"unknown option --{key}: did you mean --{near[0]}?")
    known_key(key)


def print_help(program: str, summary: str, more: Sequence[tuple[str, str]] = ()) -> None:
    """Print usage and every field: meaning, type and limits, default.

    `more` are options that `program` has on top, and what they do.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    own = "".join(f" \\[{option}]" for option, _ in more)
    console.print(
        f"[bold]{program}[/] \\[CONFIG] \\[--section.field VALUE]... \\[--output DIR] \\[--resume RUN] \\[--spawn]"
        f"{own}\n\n{summary}\n"
    )
    console.print(
        f"CONFIG    a preset ({', '.join(presets())}) or the path of a .toml file; default tiny, whose values are below"
    )
    for option, words in more:
        console.print(f"{option.partition(' ')[0]:<10}{words}", markup=False)
    console.print("--output  folder of the run; default runs/NAME-TIME")
    console.print("--resume  go on with a run, whichever stack wrote it; its config is kept, overrides apply on top")
    console.print(
        "--spawn   start one process for each device of parallel here, on the CPU: a rehearsal of a cluster\n"
    )
    section, chosen, narrow = "", load_config(), console.width < NARROW
    columns = (WIDE[0], ("type, limits; default run; meaning", None)) if narrow else WIDE
    table = Table()
    for name, (owner, leaf) in fields().items():
        head = name.rpartition(".")[0]
        if head != section or not table.columns:
            if table.columns:
                console.print(table)
            section = head
            table = Table(title=f"{head or 'run'}: {(owner.__doc__ or '').strip()}", title_justify="left", box=None)
            for column, width in columns:
                table.add_column(column, width=width, overflow="fold")
        info = owner.model_fields[leaf]
        value: Any = functools.reduce(getattr, name.split("."), chosen)
        default = "" if value is None else str(value)
        cells = (describe_type(owner, leaf), default or "unset", info.description or "")
        table.add_row(f"--{name}", *(["; ".join(cells[:2]) + "\n" + cells[2]] if narrow else cells))
    console.print(table)
    console.print(f"\nexamples\n{EXAMPLES.format(program=program)}", markup=False)

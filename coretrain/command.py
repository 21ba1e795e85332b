"""The command line that both trainers share: a config, dotted overrides, --output, --resume, --help."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coretrain.config import RunConfig, apply_overrides, build_config, describe_type, fields, load_config, presets
from coretrain.errors import UserError

FREE_AT_RESUME = ("data.workers", "data.prepare_processes", "data.cache")
"""Fields of data that change nothing of what is trained."""


@dataclass(frozen=True)
class Command:
    """What a user asked for."""

    config: RunConfig
    output: Path | None
    resume: Path | None
    overrides: tuple[tuple[str, str], ...]


def parse(argv: Sequence[str], program: str, summary: str) -> Command:
    """Read `[CONFIG] [--section.field value]... [--output DIR] [--resume RUN]`; --help prints all fields and exits.

    Raises `UserError`, which names the field or the folder and the way out.
    """
    name: str | None = None
    given: list[tuple[str, str]] = []
    words = list(argv)
    if any(word in ("-h", "--help") for word in words):
        print_help(program, summary)
        sys.exit(0)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if name is not None:
                raise UserError(f"two configs are given, {name} and {word}: give one")
            name = word
            continue
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or (words[0].startswith("--") and "." in words[0]):
                raise UserError(f"--{key} has no value: give one after it, as in --train.updates 200")
            value = words.pop(0)
        given.append((key, value))
    places = {key: Path(value) for key, value in given if key in ("output", "resume")}
    overrides = tuple((key, value) for key, value in given if key not in places)
    output, resume = places.get("output"), places.get("resume")
    if resume is None:
        return Command(load_config(name, overrides), output, None, overrides)
    if name is not None:
        raise UserError(
            f"config {name} and --resume {resume} are given: a resumed run has its own config; leave one out"
        )
    if output is not None:
        raise UserError("--output and --resume are given: a resumed run goes on in its own folder; leave one out")
    resume = run_of(resume)
    return Command(resumed_config(resume, overrides), None, resume, overrides)


def run_of(path: Path) -> Path:
    """The run's folder, for a run or for one of its checkpoints."""
    for folder in (path, path.parent.parent):
        if (folder / "config.json").is_file():
            return folder
    what = "holds no run (no config.json)" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}: give the folder of a run, as in --resume runs/NAME")


def open_run(folder: Path) -> RunConfig:
    """The config of the run in `folder`."""
    return RunConfig.from_json((run_of(folder) / "config.json").read_text(encoding="utf-8"))


def resumed_config(folder: Path, overrides: Sequence[tuple[str, str]]) -> RunConfig:
    """The run's own config with `overrides`, of which none may make it another training."""
    for key, _ in overrides:
        if key.split(".")[0] in ("model", "data") and key not in FREE_AT_RESUME:
            raise UserError(f"{key} can't change at --resume, since it would be another training: start a new run")
    raw = open_run(folder).model_dump(mode="json")
    return build_config(apply_overrides(_without_nulls(raw), overrides), str(folder / "config.json"))


def _without_nulls(raw: dict[str, object]) -> dict[str, object]:
    return {
        key: _without_nulls(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if value is not None
    }


def run_folder(command: Command) -> Path:
    """Where the run goes: the resumed one's folder, --output, or a fresh runs/NAME-TIME. Never one that holds a run."""
    if command.resume:
        return command.resume
    if command.output:
        if (command.output / "config.json").exists():
            raise UserError(
                f"{command.output} already holds a run: go on with --resume {command.output}, or choose another"
            )
        return command.output
    stem = Path("runs") / f"{command.config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [stem, *(stem.with_name(f"{stem.name}-{n}") for n in range(2, 1000))]
    return next(folder for folder in candidates if not folder.exists())


def print_help(program: str, summary: str) -> None:
    """Print usage and every field: meaning, type and limits, default."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(
        f"[bold]{program}[/] \\[CONFIG] \\[--section.field VALUE]... \\[--output DIR] \\[--resume RUN]\n\n{summary}\n"
    )
    console.print(f"CONFIG    a preset ({', '.join(presets())}) or the path of a .toml file; default tiny")
    console.print("--output  folder of the run; default runs/NAME-TIME")
    console.print("--resume  go on with a run, whichever stack wrote it; its config is kept, overrides apply on top\n")
    section = ""
    table = Table()
    for name, (owner, leaf) in fields().items():
        head = name.rpartition(".")[0]
        if head != section or not table.columns:
            if table.columns:
                console.print(table)
            section = head
            table = Table(title=f"{head or 'run'}: {(owner.__doc__ or '').strip()}", title_justify="left", box=None)
            for column, width in (("field", 34), ("type, limits", 30), ("default", 18), ("meaning", None)):
                table.add_column(column, width=width, overflow="fold")
        info = owner.model_fields[leaf]
        default = "" if info.default is None else str(info.default)
        table.add_row(f"--{name}", describe_type(owner, leaf), default or "unset", info.description or "")
    console.print(table)

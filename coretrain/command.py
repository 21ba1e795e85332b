"""The command line that both trainers share: a config, dotted overrides, --output, --resume, --help."""

from __future__ import annotations

import difflib
import functools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from coretrain.checkpoint import CheckpointFolder, read_sealed
from coretrain.config import (
    RunConfig,
    apply_overrides,
    build_config,
    describe_type,
    fields,
    known_key,
    load_config,
    presets,
)
from coretrain.errors import UserError

PLACES = ("output", "resume")
FLAGS = ("spawn",)

EXAMPLES = """\
  {program}                                               the default run
  {program} gpt2-124m --data.source stdlib                a preset on this Python's own library: no download
  {program} my.toml --optimizer.lr=3e-4 --output runs/my  a file of yours, one field changed, its folder named
  {program} --resume runs/my --train.updates 2000         goes on, for longer"""
FREE_AT_RESUME = ("data.workers", "data.prepare_processes", "data.cache", "adapter.base")
"""Fields of data and adapter that change nothing of what is trained; a base must have the same fingerprint."""


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
                raise UserError("the name of the config is empty: give a preset or a .toml file, or leave it out")
            if name is not None:
                raise UserError(f"two configs are given, {name} and {word}: give one")
            name = word
            continue
        key, equals, value = word[2:].partition("=")
        if key in FLAGS:
            if equals:
                raise UserError(f"--{key} takes no value")
            spawn = True
            continue
        if not equals:
            _known_option(key)
            if not words or words[0].startswith("--"):
                raise UserError(
                    f"--{key} has no value: give one after it, as in --train.updates 200 "
                    f"(or --{key}=VALUE where the value starts with --)"
                )
            value = words.pop(0)
        _known_option(key)
        if key in PLACES and (not value or any(key == other for other, _ in given)):
            raise UserError(f"--{key} is {'given twice' if value else 'empty'}: give one folder")
        given.append((key, value))
    places = {key: Path(value) for key, value in given if key in PLACES}
    overrides = tuple((key, value) for key, value in given if key not in PLACES)
    output, resume = places.get("output"), places.get("resume")
    if resume is None:
        return Command(load_config(name, overrides), output, None, overrides, spawn)
    if name is not None:
        raise UserError(
            f"config {name} and --resume {resume} are given: a resumed run has its own config; leave one out"
        )
    if output is not None:
        raise UserError("--output and --resume are given: a resumed run goes on in its own folder; leave one out")
    folder = run_of(resume)
    _check_newest(resume, folder)
    return Command(resumed_config(folder, overrides), None, folder, overrides, spawn)


def _known_option(key: str) -> None:
    if key in PLACES:
        return
    if near := difflib.get_close_matches(key, (*PLACES, *FLAGS, "help"), 1, 0.7):
        raise UserError(f"unknown option --{key}: did you mean --{near[0]}?")
    known_key(key)


def run_of(path: Path) -> Path:
    """The run's folder, for a run or for one of its checkpoints. Raises `UserError` where there is no run."""
    hint = "give the folder of a run, as runs/NAME"
    if not path.exists():
        raise UserError(f"{path} does not exist: {hint}")
    if (path / "config.json").is_file():
        return path
    folder = path.resolve().parent.parent
    if path.resolve().parent.name not in ("checkpoints", "interchange") or not (folder / "config.json").is_file():
        raise UserError(f"{path} holds no run (no config.json): {hint}")
    return folder


def _check_newest(path: Path, folder: Path) -> None:
    kept = (CheckpointFolder(folder / kind).complete() for kind in ("checkpoints", "interchange"))
    newest = next((whole[0] for whole in kept if whole), None)
    if newest and path.resolve() != folder.resolve() and path.resolve().name != newest.name:
        raise UserError(
            f"{path} is not its run's newest checkpoint, {newest.name}, from which --resume goes on: "
            "to start from an older one, copy the run's folder without the newer ones and resume the copy"
        )


def open_run(folder: Path) -> RunConfig:
    """The config of the run in `folder`. Raises `UserError` where there is none, or a damaged or newer one."""
    path = run_of(folder) / "config.json"
    try:
        return RunConfig.from_json(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or start a new run") from None


def resumed_config(folder: Path, overrides: Sequence[tuple[str, str]]) -> RunConfig:
    """The run's own config with `overrides`, of which none may make it another training."""
    for key, _ in overrides:
        if key.split(".")[0] in ("model", "data", "adapter") and key not in FREE_AT_RESUME:
            raise UserError(f"{key} can't change at --resume, since it would be another training: start a new run")
    run = open_run(folder)
    raw = _without_nulls(run.model_dump(mode="json"))
    config = build_config(apply_overrides(raw, overrides), str(folder / "config.json"), overrides)
    old, new = run.optimizer.name, config.optimizer.name
    if old != new and "muon" in (old, new) and _has_moments(folder):
        raise UserError(
            f"optimizer.name = {new} keeps other moments than {old}, whose are in {folder}: leave it out, or start a "
            "new run"
        )
    return config


def _has_moments(run: Path) -> bool:
    """Whether a run has moments to go on with: imported weights have none."""
    if CheckpointFolder(run / "checkpoints").complete():
        return True
    imported = CheckpointFolder(run / "interchange").complete()
    return bool(imported) and len(read_sealed(imported[0]).tensors) > 1


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
        if command.output.exists() and not command.output.is_dir():
            raise UserError(f"{command.output} is a file: --output takes a folder, which need not exist")
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
        f"[bold]{program}[/] \\[CONFIG] \\[--section.field VALUE]... \\[--output DIR] \\[--resume RUN] \\[--spawn]\n\n"
        f"{summary}\n"
    )
    console.print(
        f"CONFIG    a preset ({', '.join(presets())}) or the path of a .toml file; default tiny, whose values are below"
    )
    console.print("--output  folder of the run; default runs/NAME-TIME")
    console.print("--resume  go on with a run, whichever stack wrote it; its config is kept, overrides apply on top")
    console.print(
        "--spawn   start one process for each device of parallel here, on the CPU: a rehearsal of a cluster\n"
    )
    section, chosen = "", load_config()
    table = Table()
    for name, (owner, leaf) in fields().items():
        head = name.rpartition(".")[0]
        if head != section or not table.columns:
            if table.columns:
                console.print(table)
            section = head
            table = Table(title=f"{head or 'run'}: {(owner.__doc__ or '').strip()}", title_justify="left", box=None)
            for column, width in (("field", 34), ("type, limits", 30), ("default run", 18), ("meaning", None)):
                table.add_column(column, width=width, overflow="fold")
        info = owner.model_fields[leaf]
        value: Any = functools.reduce(getattr, name.split("."), chosen)
        default = "" if value is None else str(value)
        table.add_row(f"--{name}", describe_type(owner, leaf), default or "unset", info.description or "")
    console.print(table)
    console.print(f"\nexamples\n{EXAMPLES.format(program=program)}", markup=False)

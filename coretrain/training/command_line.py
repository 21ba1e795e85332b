"""The command line that both trainers share: a config, dotted overrides, --output, --resume, --help."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.load import known_key, load_config
from coretrain.config.run import RunConfig
from coretrain.runs.folder import check_newest, resumed_config, run_of
from coretrain.training.help import asks_for_help, print_help

PLACES = ("output", "resume")
SHORT = {"from": "train.start"}
"""Options that are short for a field."""
FLAGS = ("spawn",)


@dataclass(frozen=True)
class Command:
    """What a user asked for."""

    config: RunConfig
    output: Path | None
    resume: Path | None
    overrides: tuple[tuple[str, str], ...]
    spawn: bool = False
    """Start one process for each device of `parallel` here, on this machine's CPU."""
    stated: bool = False
    """Whether a config is named beside --from: its model must be that run's."""


def parse(argv: Sequence[str], program: str, summary: str) -> Command:
    """Read `[CONFIG] [--from RUN] [--section.field value]... [--output DIR] [--resume RUN] [--spawn]`.

    --help prints all fields and exits.
    Raises `UserError`, which names the field or the folder and the way out.
    """
    name: str | None = None
    given: list[tuple[str, str]] = []
    # the deepspeed launcher adds --local_rank, which the environment tells too
    words, spawn = [word for word in argv if not word.startswith("--local_rank=")], False
    if asks_for_help(words):
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
    given, begins = _in_full(given)
    stated = begins and name is not None
    places = {key: typed_path(value) for key, value in given if key in PLACES}
    overrides = tuple((key, value) for key, value in given if key not in PLACES)
    output, resume = places.get("output"), places.get("resume")
    if resume is None:
        return Command(load_config(name, overrides), output, None, overrides, spawn, stated)
    if begins:
        raise UserError(
            "training/from-with-resume",
            "--from and --resume are given: --resume goes on with a run in its own folder, --from begins a new one; "
            "leave one out",
        )
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


def _in_full(given: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], bool]:
    """What is given with fields in place of options that are short for them, and whether there are any.

    Raises `UserError` for one that is empty, or given beside its field or another of its kind.
    """
    full = [(SHORT.get(key, key), value) for key, value in given]
    for key, value in given:
        if key in SHORT and (not value or sum(SHORT[key] == other for other, _ in full) > 1):
            raise UserError(
                "training/from-empty-or-twice",
                f"--{key} is {f'given twice, or beside --{SHORT[key]}' if value else 'empty'}: give one run",
            )
    return full, full != given


def _known_option(key: str) -> None:
    if key in PLACES or key in SHORT:
        return
    if near := difflib.get_close_matches(key, (*PLACES, *SHORT, *FLAGS, "help"), 1, 0.7):
        raise UserError("training/unknown-option", f"unknown option --{key}: did you mean --{near[0]}?")
    known_key(key)

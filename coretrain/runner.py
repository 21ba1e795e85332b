"""From a command line to a finished run: folder, data, model, journal, resume, the loop, and the last words."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coretrain.adapter_runs import (
    adapter_summary,
    carry_chat_template,
    check_tokenizer,
    on_base,
    settled,
)
from coretrain.bases import keep_base
from coretrain.budget import batch_sentence, summary
from coretrain.chat_runs import keep_template, with_template
from coretrain.checkpoint import (
    CheckpointFolder,
    Progress,
    load_interchange,
    newest_interchange,
    read_sealed,
    save_interchange,
)
from coretrain.command import Command, parse, run_folder
from coretrain.config import RunConfig
from coretrain.data import Data, open_data
from coretrain.data.files import write_atomically
from coretrain.errors import RESUME, UserError, leave, said
from coretrain.journal import Journal, SilentJournal
from coretrain.loop import Loop, Stack
from coretrain.parameters import BlankParameters
from coretrain.run_files import with_own_files
from coretrain.spawn import launched, line_that_goes_on, spawn
from coretrain.translation import MODULES, translate
from coretrain.watch import Watch
from coretrain.world import World

Tensors = Mapping[str, NDArray[np.generic]]
MakeStack = Callable[[RunConfig, Tensors | None], Stack]
Join = Callable[[RunConfig], World]
SHARED_WITHIN = 30
"""Seconds within which every process must see what the first has written."""
LEAVES_LAST = 2.0
"""Seconds by which the first process outlasts the others, where all end by an error: JAX's coordinator lives in it."""


def run(argv: list[str], stack_name: str, make_stack: MakeStack, join: Join = lambda config: World()) -> int:
    """The whole of `python -m torchtrain.run` or its twin; the exit code.

    `join` makes this process one of those that a launcher started; alone, it is its own world. The first of them
    chooses the folder, speaks and seals; all go through the same steps, and what fails for one ends all.
    """
    module = MODULES[stack_name]
    command = with_template(on_base(parse(argv, f"python -m {module}.run", "Train a GPT.")))
    if command.spawn and not launched():
        return spawn(f"{module}.run", argv, command)
    world = join(command.config)
    try:
        code = _run(command, stack_name, make_stack, world)
        world.leave()
    except BaseException as error:
        if world.size == 1:
            raise
        code = (said(error, RESUME) if isinstance(error, Exception) else None) or 1
        if code == 1:
            traceback.print_exc()
        time.sleep(LEAVES_LAST if world.first else 0)
    if world.size > 1:
        leave(code)
    return code


def _run(command: Command, stack_name: str, make_stack: MakeStack, world: World) -> int:
    module = MODULES[stack_name]
    common = _common(command.config)
    world.same(f"{common.to_json()} {command.output} {command.resume}", "config or command line")
    data = world.together(lambda: open_data(with_own_files(common, command.resume)))
    world.together(lambda: check_tokenizer(common, data.tokenizer.fingerprint))
    config, base = world.together(lambda: settled(common.with_vocab(data.tokenizer.vocab)))
    folder = Path(world.told(str(world.together(lambda: _folder(command, world)))))
    progress = Progress(data_fingerprint=data.fingerprint, seed=config.train.seed, batch_size=config.train.batch_size)
    world.same(data.fingerprint, "data fingerprint")
    resumed = command.resume is not None
    restored = bool(resumed and world.told("1" if holds_state(folder) else ""))
    start = BlankParameters(config.model) if restored and base is None else base
    stack = world.together(lambda: make_stack(config, start))

    def warn(text: str) -> None:
        if world.first:
            print(f"warning: {text}", file=sys.stderr)

    if resumed and not restored:
        warn(f"{folder} was stopped before its first checkpoint: it starts at update 0")
    elif restored:
        found = restore(stack, folder, warn, world=world)
        if found.data_fingerprint:
            check_resumable(config, data, found)
            progress = found
        # else weights imported from elsewhere: they have seen none of this data, and the run starts at its beginning
    world.same(json.dumps(progress.to_json()), "place to go on from")
    world.by_first(lambda: begin_folder(folder, config, data))
    if base and (remark := world.together(lambda: keep_base(config, base.folder) if world.first else "")):
        warn(remark)
    world.together(lambda: check_shared(folder, config, world))
    line = line_that_goes_on(f"{module}.run", folder, command, world)
    first, p = world.first, config.parallel
    journal = open_journal(folder, config, stack_name, progress.update, stack.device_name, world)
    with journal, Watch(folder, world, p.silence, p.timeout, line) as watch:
        journal.header(
            {
                "run": [("folder", str(folder)), *([("resumed at", f"update {progress.update}")] if resumed else [])],
                "machine": list(stack.describe()),
                "model": [*summary(config), *adapter_summary(config)],
                "data": data.summary(),
                "batch": batch_sentence(config, places_of(data, config)),
            }
        )
        loop = Loop(config, stack, data, folder, journal, progress, world, watch.at)
        status = loop.train()
        if status == "finished":
            watch.at("the export")
            export(stack, config, loop.progress, folder, world)
            watch.at("the sample")
            loop.sample()
        journal.close(status, best=loop.progress.best)
    if status != "finished" and first:
        print(f"{status} after update {loop.progress.update}; go on with: {line}")
    return 1 if status == "stopped" else 0


def _common(config: RunConfig) -> RunConfig:
    """What all processes have in common: each has a `parallel.host` of its own."""
    return config.model_copy(update={"parallel": config.parallel.model_copy(update={"host": None})})


def _folder(command: Command, world: World) -> Path:
    """The run's folder; of several processes absolute, for they may be at different places."""
    return run_folder(command) if world.size == 1 else run_folder(command).absolute()


def check_shared(folder: Path, config: RunConfig, world: World) -> None:
    """Raise `UserError` where this process doesn't see what the first has just written into the run's folder."""
    for _ in range(SHARED_WITHIN):  # a network's file system shows new files late
        try:
            if world.first or (folder / "config.json").read_text() == config.to_json():
                return
        except OSError:
            pass
        time.sleep(1)
    raise UserError(f"{folder} is not there for every process: put --output on a file system that all hosts share")


def begin_folder(folder: Path, config: RunConfig, data: Data) -> None:
    """Make the run's folder, with its config, its tokenizer, and its base's chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "config.json", config.to_json().encode())
    data.tokenizer.save(folder)
    if data.template:
        keep_template(folder, data.template)
    else:
        carry_chat_template(config, folder)


def open_journal(
    folder: Path, config: RunConfig, stack_name: str, start_update: int, device_name: str, world: World
) -> Journal:
    """The run's journal, silent on all processes but the first; what that one finds wrong is raised on all."""

    def opened() -> Journal:
        return Journal(folder, config, stack_name, start_update, device_name) if world.first else SilentJournal()

    return world.together(opened)


def places_of(data: Data, config: RunConfig) -> int:
    """Tokens of an epoch, what is left empty of packed rows included."""
    row = config.row_tokens
    return data.train.windows(row) * row if data.template else data.train.tokens


def check_resumable(config: RunConfig, data: Data, progress: Progress) -> None:
    """Raise `UserError` where going on would be another training than the one that was saved."""
    if progress.data_fingerprint != data.fingerprint:
        raise UserError(
            f"the data's fingerprint is {data.fingerprint}, the checkpoint was trained on {progress.data_fingerprint}: "
            "restore the same files and tokenizer, or start a new run"
        )
    for field, saved, now in (
        ("train.batch_size", progress.batch_size, config.train.batch_size),
        ("train.seed", progress.seed, config.train.seed),
    ):
        if saved != now:
            raise UserError(f"{field} = {now}, the checkpoint was trained with {saved}: keep it, or start a new run")


def export(stack: Stack, config: RunConfig, progress: Progress, folder: Path, world: World | None = None) -> Path:
    """Write the present state as the run's interchange checkpoint, from which either stack and the converter start.

    Where several processes hold parts of the state, the first makes it from the native checkpoint just written.
    """
    world = world or World()
    name = f"update-{progress.update:08d}"
    target = folder / "interchange" / name
    if world.size == 1:
        save_interchange(target, config, stack.export(), progress, stack.name)
    else:
        world.by_first(lambda: translate(stack.name, folder, name))
    if world.first:
        CheckpointFolder(target.parent).prune(keep=1)
    return target


def restore(
    stack: Stack, folder: Path, warn: Callable[[str], None], for_text: bool = False, world: World | None = None
) -> Progress:
    """Load a run's newest whole checkpoint into `stack`, whichever stack wrote it.

    `for_text` it is the best one, if that is whole, without moments.
    """
    checkpoints, world = CheckpointFolder(folder / "checkpoints"), world or World()

    def load(path: Path, progress: Progress) -> Progress:
        sealed = read_sealed(path)
        if sealed.stack == stack.name:
            stack.load(path, None if for_text else progress.applied)
            return progress
        translated = folder / "interchange" / path.name
        stale = not translated.exists() or read_sealed(translated).progress != progress
        if world.told("1" if stale else ""):
            world.by_first(lambda: translate(sealed.stack, folder, path.name))
        return adopt(stack, translated, for_text)

    if not world.told("1" if checkpoints.complete() else ""):
        newest = world.told(str(world.together(lambda: newest_interchange(folder) if world.first else "")))
        return world.together(lambda: adopt(stack, Path(newest), for_text))
    return checkpoints.first_that_loads(load, warn, world, best_first=for_text)[1]


def holds_state(folder: Path) -> bool:
    """Whether a run's folder has any checkpoint, of its own or imported."""
    return any(CheckpointFolder(folder / kind).complete() for kind in ("checkpoints", "interchange"))


def adopt(stack: Stack, path: Path, for_text: bool = False) -> Progress:
    """Load an interchange checkpoint into `stack`; `for_text` without moments."""
    interchange = load_interchange(path)
    groups = {name: tensors for name, tensors in interchange.groups.items() if name == "parameters" or not for_text}
    stack.adopt(groups, interchange.progress.applied)
    return interchange.progress

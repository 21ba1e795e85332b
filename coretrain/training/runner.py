"""From a command line to a finished run: folder, data, model, journal, resume, the loop, and the last words."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from coretrain.base.errors import (
    RESUME,
    UserError,
    exit_interrupted,
    exit_now,
    print_user_error,
)
from coretrain.base.files import TEMPORARY, remove, write_atomically
from coretrain.base.locks import held
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress
from coretrain.checkpoint.translate import MODULES
from coretrain.config.objectives import POLICY
from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from coretrain.contract.parameters import BlankParameters
from coretrain.data.prompts.open import prompts_of
from coretrain.data.splits import Data
from coretrain.diagnosis.read import known_of
from coretrain.journal.journal import Journal, SilentJournal
from coretrain.planning.flops import batch_sentence, rate_sentence, summary
from coretrain.processes.heartbeat import Watch
from coretrain.processes.launch import launched
from coretrain.processes.world import World
from coretrain.runs.adapted import (
    adapter_summary,
    carry_chat_template,
)
from coretrain.runs.base import keep_base
from coretrain.runs.chat import keep_template
from coretrain.runs.folder import change_told, changed_since
from coretrain.runs.moments import told_origin
from coretrain.runs.start import keep_start
from coretrain.training.asking import Asking
from coretrain.training.command_line import Command, parse
from coretrain.training.feeds import Feed, check_reference, open_feed
from coretrain.training.loop import Loop
from coretrain.training.presets import with_presets
from coretrain.training.references import MakeStack
from coretrain.training.resolve import completed, resolve, run_folder
from coretrain.training.restore import (
    begin_from,
    check_resumable,
    export,
    holds_state,
    restore,
)
from coretrain.training.saver import kept_arrays
from coretrain.training.spawn import line_that_goes_on, spawn

Join = Callable[[RunConfig], World]
SHARED_WITHIN = 30
"""Seconds within which every process must see what the first has written."""
LEAVES_LAST = 2.0
"""Seconds by which the first process outlasts the others, where all end by an error: JAX's coordinator lives in it."""


def run(
    argv: Sequence[str],
    stack_name: str,
    make_stack: MakeStack,
    join: Join = lambda config: World(),
    program: str = "",
) -> int:
    """The whole of `python -m torchtrain.run` or its twin; the exit code. `program` is what was typed, if not that.

    `join` makes this process one of those that a launcher started; alone, it is its own world. The first of them
    chooses the folder, speaks and seals; all go through the same steps, and what fails for one ends all.
    """
    module = MODULES[stack_name]
    program = program or f"python -m {module}.run"

    def train(preset: str) -> int:
        return run([preset], stack_name, make_stack, join, program)

    command = completed(with_presets(parse(argv, program, "Train a GPT."), stack_name, train))
    if command.spawn and not launched():
        return spawn(f"{module}.run", argv, command, program)
    world = join(command.config)
    try:
        with contextlib.ExitStack() as hold:
            code = _run(command, stack_name, make_stack, world, program, hold)
        world.shutdown()
    except BaseException as error:
        if world.size == 1:
            raise
        if isinstance(error, KeyboardInterrupt):
            exit_interrupted()
        code = (print_user_error(error, RESUME) if isinstance(error, Exception) else None) or 1
        if code == 1:
            traceback.print_exc()
        time.sleep(LEAVES_LAST if world.first else 0)
    if world.size > 1:
        exit_now(code)
    return code


def _run(
    command: Command, stack_name: str, make_stack: MakeStack, world: World, program: str, hold: contextlib.ExitStack
) -> int:
    """`hold` is closed at the end of the run, which no other may write into meanwhile."""
    module = MODULES[stack_name]

    def warn(text: str) -> None:
        if world.first:
            print(f"warning: {text}", file=sys.stderr)

    resume = command.resume
    world.collectively(lambda: hold_run(command, resume, hold, warn) if resume and world.first else None)
    ready = resolve(command, world, stack_name)
    config, data, base, folder, resumed = ready.config, ready.data, ready.base, ready.folder, ready.resumed
    progress = Progress(data_fingerprint=data.fingerprint, seed=config.train.seed, batch_size=config.train.batch_size)
    restored = bool(resumed and world.broadcast_bool(holds_state(folder)))
    begins = BlankParameters(config.model) if restored and base is None else ready.start if base is None else base
    stack = world.collectively(lambda: make_stack(config, begins))
    if resumed and not restored:
        warn(f"{folder} was stopped before its first checkpoint: it starts at update 0")
    elif restored:
        found = restore(stack, folder, warn, world=world)
        if found.data_fingerprint:
            check_resumable(config, data, found)
            progress = found
            given = {key for key, _ in command.overrides}
            changed = changed_since(folder, config) if world.first else {}
            if unasked := {field: values for field, values in changed.items() if field not in given}:
                warn(f"it goes on with {change_told(unasked)}")
        # else weights imported from elsewhere: they have seen none of this data, and the run starts at its beginning
    if ready.start is not None and not restored:
        progress = begin_from(stack, ready.start, config, progress, world)
    world.assert_same(json.dumps(progress.to_json()), "place to go on from")
    places: list[Callable[[str], None]] = []

    def at(place: str) -> None:
        for tell in places:
            tell(place)

    start = ready.start
    # before anything is written: a reference or a reward that can't be used leaves no folder behind
    feed = world.collectively(lambda: open_feed(config, data, stack, make_stack, base, start, world, at))
    hold.callback(feed.close)
    asking = world.collectively(lambda: Asking(config, stack, data))
    if restored:
        take_up(feed, progress, folder)
    if not resumed:
        begun = world.gather_results(
            lambda: str(hold_run(command, ready.folder, hold, warn) if world.first else ready.folder)
        )
        folder = Path(begun[0])
    world.on_rank0(lambda: begin_folder(folder, config, data))
    if base and (remark := world.collectively(lambda: keep_base(config, base.folder) if world.first else "")):
        warn(remark)
    if start and (remark := world.collectively(lambda: keep_start(start) if world.first else "")):
        warn(remark)
    world.collectively(lambda: check_shared(folder, config, world))
    line = line_that_goes_on(f"{module}.run", folder, command, world, program)
    first, p = world.first, config.parallel
    journal = open_journal(folder, config, stack_name, progress.update, stack.device_name, world)
    journal.known = known_of(config, data) if config.train.objective == "cross_entropy" and world.first else None
    if journal.gaps:
        warn(journal.gaps)
    with journal, Watch(folder, world, p.silence, p.timeout, line) as watch:
        journal.header(
            {
                "run": [("folder", str(folder)), *([("resumed at", f"update {progress.update}")] if resumed else [])],
                "machine": [*stack.describe(), *chosen_compute(ready.compute)],
                "model": [*summary(config), *started(config), *told_origin(progress.origin), *adapter_summary(config)],
                "data": data.summary(),
                "batch": told_batch(config, data),
                "learning rate": rate_sentence(config),
            }
        )
        places.append(watch.at)
        loop = Loop(config, stack, data, folder, journal, progress, world, watch.at, feed.source, feed.kept, asking)
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


def started(config: RunConfig) -> list[tuple[str, str]]:
    """The header's row of where the weights come from; none of fresh ones."""
    return [("start", config.train.start)] if config.train.start else []


def take_up(feed: Feed, progress: Progress, folder: Path) -> None:
    """Have the source of batches go on from where the run's newest checkpoint left it."""
    check_reference(feed.kept, progress.align)
    state = {name: value for name, value in progress.align.items() if name not in feed.kept}
    feed.source.load(state, kept_arrays(CheckpointFolder(folder / "checkpoints").final(progress.update)))


def chosen_compute(choice: Choice | None) -> list[tuple[str, str]]:
    """The header's row of the dtype that `auto` took, with its reason; none where it was given."""
    return [("compute", f"{choice.name} ({choice.reason})")] if choice else []


def hold_run(command: Command, folder: Path, hold: contextlib.ExitStack, warn: Callable[[str], None]) -> Path:
    """Make the run's folder and hold it until `hold` is closed. Raises `UserError` where another process does.

    It is returned: of two runs that begin in one second, and were given no folder, the second takes another.
    """
    named = command.output or command.resume
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as attempt:
            try:
                attempt.enter_context(held(folder, warn))
                if not command.resume:
                    run_folder(replace(command, output=folder))  # another may have begun, and ended, since
            except UserError:
                if named:
                    raise
                folder = run_folder(command).absolute() if folder.is_absolute() else run_folder(command)
                continue
            hold.enter_context(attempt.pop_all())
            return folder


def check_shared(folder: Path, config: RunConfig, world: World) -> None:
    """Raise `UserError` where this process doesn't see what the first has just written into the run's folder."""
    for _ in range(SHARED_WITHIN):  # a network's file system shows new files late
        try:
            if world.first or (folder / "config.json").read_text(encoding="utf-8") == config.to_json():
                return
        except (OSError, ValueError):
            pass
        time.sleep(1)
    raise UserError(
        "training/output-not-shared",
        f"{folder} is not there for every process: put --output on a file system that all hosts share",
    )


def begin_folder(folder: Path, config: RunConfig, data: Data) -> None:
    """Make the run's folder, with its config, its tokenizer, and its base's chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    remove(path for path in folder.glob(f"{TEMPORARY}[0-9]*") if path.is_file())  # of a process that was killed
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
        if not world.first:
            return SilentJournal()
        return Journal(folder, config, stack_name, start_update, device_name, processes=world.size)

    return world.collectively(opened)


def told_batch(config: RunConfig, data: Data) -> str:
    """The header's batch and epochs: of tokens, what is left empty of packed rows included, or of prompts."""
    if config.train.objective in POLICY:
        return batch_sentence(config, prompts=prompts_of(data, config).number)
    row = config.row_tokens
    return batch_sentence(config, data.train.windows(row) * row if data.template else data.train.tokens)

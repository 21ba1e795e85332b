"""From a command line to a run that is ready. Read from top to bottom: this is all that ever happens to a config.

`completed` needs nothing but files, and gives what the processes of a run are started with. `resolve` goes on once they
have met. After it no config is changed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from coretrain.adapters.merge import FREE
from coretrain.adapters.targets import adapter_targets
from coretrain.base.errors import UserError
from coretrain.config.objectives import POLICY, REFERRED
from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from coretrain.contract.quantization import quantized_parameters
from coretrain.data.open import open_data
from coretrain.data.splits import Data
from coretrain.processes.world import World
from coretrain.runs.adapted import check_tokenizer, with_base
from coretrain.runs.base import BaseTensors, base_run, check_context
from coretrain.runs.files import with_own_files
from coretrain.runs.folder import open_run
from coretrain.runs.moments import with_last_rate
from coretrain.runs.start import StartTensors, check_same_tokenizer, like_start, open_start
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.registry import saved_tokenizer
from coretrain.training.command_line import Command
from coretrain.training.compute import with_compute
from coretrain.training.restore import holds_state


@dataclass(frozen=True)
class ResolvedRun:
    """A run that is ready to be made."""

    config: RunConfig
    data: Data
    base: BaseTensors | None
    """The frozen weights under an adapter; None where the whole model trains."""
    start: StartTensors | None
    """The weights that a new run begins with, and that a reference is; None where they are fresh."""
    folder: Path
    resumed: bool
    compute: Choice | None = None
    """The dtype that precision.compute = auto took; None where it was given."""


def completed(command: Command) -> Command:
    """`command` with what a new run takes from its start or its adapter's base: model, tokenizer and chat template.

    Any other command is returned as it is. Raises `UserError` where there is no such base, or a field contradicts it.
    """
    adapter = command.config.adapter
    if adapter.kind == "none" and adapter.base is not None:
        raise UserError(
            "training/base-without-adapter",
            f"adapter.base = {adapter.base} is set, and adapter.kind = none trains a whole model without it: set "
            "adapter.kind = lora, or adapter.base = none",
        )
    if command.resume is not None:
        return command
    if adapter.kind == "none":
        if command.config.train.start is None:
            return command
        given = {key for key, _ in command.overrides}
        return replace(command, config=with_last_rate(like_start(command.config, given, command.stated)))
    if adapter.base is None:
        raise UserError(
            "training/adapter-without-base",
            f"adapter.kind = {adapter.kind} has no base: give the folder of the run to adapt, as --adapter.base runs/X",
        )
    folder = base_run(adapter.base)
    base = open_run(folder)
    if base.adapter.kind != "none":
        raise UserError(
            "training/base-is-adapter",
            f"adapter.base = {adapter.base} is itself an adapter's run: merge it first, with twintrain convert merge",
        )
    given = {key for key, _ in command.overrides}
    if fixed := sorted(key for key in given if key.startswith("model.") and key.split(".")[1] not in FREE):
        raise UserError("training/field-set-by-base", f"{fixed[0]} is the base's, {adapter.base}: leave it out")

    config = command.config.changed(model=base.model, **_free_fields(command, given))
    check_context(config, base)
    if "data.tokenizer" not in given and (saved := saved_tokenizer(folder)):
        config = config.changed(data__tokenizer=str(saved.absolute()))
    template = folder / CHAT_TEMPLATE
    if config.data.format != "text" and config.data.chat_template is None and template.is_file():
        config = config.changed(data__chat_template=str(template.absolute()))
    adapter_targets(config)  # a wrong pattern or rank ends here, before any data is prepared
    quantized_parameters(config)  # and a matrix that isn't whole blocks
    return replace(command, config=config)


def _free_fields(command: Command, given: set[str]) -> dict[str, object]:
    """The model's fields in which an adapter may differ from its base: what was typed, and what its own file says."""
    # a file that says nothing of adapters is of another training, whose context and dropout aren't this one's
    of_file = {name for name in command.config.adapter.model_fields_set if f"adapter.{name}" not in given}
    stated = command.config.model.model_fields_set if of_file else set()
    chosen = [name for name in FREE if f"model.{name}" in given or name in stated]
    chosen.append("score_head")  # which its objective asks for, whatever the base has
    return {f"model__{name}": getattr(command.config.model, name) for name in chosen}


def resolve(command: Command, world: World, stack_name: str) -> ResolvedRun:
    """The run that a `completed` command asks for, the same on every process of `world`.

    `stack_name` names the stack whose matmuls are measured where precision.compute = auto.

    Raises `UserError` where processes were started with different commands or see different data, and where data,
    tokenizer or base don't fit.
    """
    config = command.config.changed(parallel__host=None)  # each process has its own; all else they have in common
    world.assert_same(f"{config.to_json()} {command.output} {command.resume}", "config or command line")
    config, compute = with_compute(config, stack_name, world)
    data = world.collectively(lambda: open_data(with_own_files(config, command.resume)))
    world.collectively(lambda: check_tokenizer(config, data.tokenizer.fingerprint))
    final, base = world.collectively(lambda: with_base(config.with_vocab(data.tokenizer.vocab)))
    begun = world.broadcast_bool(command.resume is not None and holds_state(command.resume))
    start = world.collectively(lambda: _start_of(final, begun, data.tokenizer.fingerprint))
    if start is not None:  # this checkpoint, also where its run goes on
        final = final.changed(train__start=str(start.folder))
    # of several processes absolute: they may be started in different places
    here = world.collectively(lambda: run_folder(command) if world.size == 1 else run_folder(command).absolute())
    folder = Path(world.broadcast(str(here)))
    sets = "".join(f" {one.fingerprint}" for one in data.sets)
    world.assert_same(data.fingerprint + sets, "data fingerprint")
    return ResolvedRun(final, data, base, start, folder, command.resume is not None, compute)


def _start_of(config: RunConfig, begun: bool, tokenizer: str) -> StartTensors | None:
    """The weights of the start, where they are needed: a run that has `begun` needs them as its reference alone."""
    if config.train.start is None or (begun and not needs_start(config)):
        return None
    check_same_tokenizer(config.train.start, "train.start", tokenizer)
    return open_start(config)


def needs_start(config: RunConfig) -> bool:
    """Whether the weights that a run began with are needed for as long as it goes on: as its reference."""
    return config.train.objective in (*REFERRED, *POLICY) and config.align.reference is None


def run_folder(command: Command) -> Path:
    """Where the run goes: the resumed one's folder, --output, or a fresh runs/NAME-TIME. Never one that holds a run."""
    if command.resume:
        return command.resume
    if command.output:
        if command.output.exists() and not command.output.is_dir():
            raise UserError(
                "training/output-is-file",
                f"{command.output} is a file: --output takes a folder, which need not exist",
            )
        if (command.output / "config.json").exists():
            raise UserError(
                "training/output-holds-run",
                f"{command.output} already holds a run: go on with --resume {command.output}, or choose another",
            )
        return command.output
    stem = Path("runs") / f"{command.config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [stem, *(stem.with_name(f"{stem.name}-{n}") for n in range(2, 1000))]
    return next(folder for folder in candidates if not folder.exists())

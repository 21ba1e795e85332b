"""From a command line to a run that is ready."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from coretrain.adapters.merge import FREE
from coretrain.adapters.targets import adapter_targets
from coretrain.base.errors import UserError
from coretrain.contract.quantization import quantized_table
from coretrain.runs.base import base_run, check_context
from coretrain.runs.folder import open_run
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.registry import saved_tokenizer
from coretrain.training.command_line import Command


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


def with_template(command: Command) -> Command:
    """A new run on conversations with its `data.chat_template`: the one asked for, or its base's."""
    config = command.config
    if config.data.format != "chat" or config.data.chat_template is not None or config.adapter.base is None:
        return command
    path = base_run(config.adapter.base) / CHAT_TEMPLATE
    if command.resume is not None or not path.is_file():
        return command
    data = config.data.model_copy(update={"chat_template": str(path.absolute())})
    return replace(command, config=config.model_copy(update={"data": data}))


def on_base(command: Command) -> Command:
    """A new run with `adapter.base`, its model and tokenizer those of the base. Others are returned as they are."""
    adapter = command.config.adapter
    if adapter.kind == "none" and adapter.base is not None:
        raise UserError(
            f"adapter.base = {adapter.base} is set, and adapter.kind = none trains a whole model without it: set "
            "adapter.kind = lora, or adapter.base = none"
        )
    if adapter.kind == "none" or command.resume is not None:
        return command
    if adapter.base is None:
        raise UserError(
            f"adapter.kind = {adapter.kind} has no base: give the folder of the run to adapt, as --adapter.base runs/X"
        )
    base = open_run(base_run(adapter.base))
    if base.adapter.kind != "none":
        raise UserError(
            f"adapter.base = {adapter.base} is itself an adapter's run: merge it first, with twintrain convert merge"
        )
    given = {key for key, _ in command.overrides}
    if fixed := sorted(key for key in given if key.startswith("model.") and key.split(".")[1] not in FREE):
        raise UserError(f"{fixed[0]} is the base's, {adapter.base}: leave it out")
    # a file that says nothing of adapters is of another training, whose context and dropout aren't this one's
    of_file = {name for name in command.config.adapter.model_fields_set if f"adapter.{name}" not in given}
    stated = command.config.model.model_fields_set if of_file else set()
    chosen = [name for name in FREE if f"model.{name}" in given or name in stated]
    free = {name: getattr(command.config.model, name) for name in chosen}
    config = command.config.model_copy(update={"model": base.model.model_copy(update=free)})
    check_context(config, base)
    saved = saved_tokenizer(base_run(adapter.base))
    if "data.tokenizer" not in given and saved:
        data = config.data.model_copy(update={"tokenizer": str(saved.absolute())})
        config = config.model_copy(update={"data": data})
    adapter_targets(config)  # a wrong pattern or rank ends here, before any data is prepared
    quantized_table(config)  # and a matrix that isn't whole blocks
    return replace(command, config=config)

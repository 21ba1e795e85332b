"""Models by name: a run, and adapters on it, over one engine."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.inference.engine import Engine
from coretrain.inference.generate import on_one_device, open_for_generation
from coretrain.runs.adapted import open_adapters
from coretrain.runs.chat import open_chat, template_changed
from coretrain.runs.folder import open_run
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer
from coretrain.training.references import MakeStack


@dataclass(frozen=True)
class Model:
    """What a client names."""

    name: str
    adapter: str | None
    """Its name in the engine."""
    tokenizer: Tokenizer
    template: Template | None
    no_chat: str
    """Why it has none."""
    ends: tuple[int, ...]
    """Ids that end an answer."""


def describe(run: Path, name: str, adapter: str | None) -> Model:
    """A run's model; one without a chat template answers completions alone."""
    tokenizer = load_tokenizer(run)
    if changed := template_changed(run):
        _warn(changed)
    try:
        template, ends = open_chat(run, tokenizer)
    except UserError as error:
        return Model(name, adapter, tokenizer, None, str(error), tokenizer.ends)
    return Model(name, adapter, tokenizer, template, "", ends)


def open_models(
    run: Path, adapters: Sequence[Path], make_stack: MakeStack, rows: int, slots: int | None, waiting: int
) -> tuple[Engine, dict[str, Model]]:
    """The engine that answers for a run and for adapters on it, and their names, the run's first. Raises `UserError`.

    With adapters the base is opened once, and each is put to work where it is asked for.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "-", run.absolute().name) or "model"
    models = {name: describe(run, name, None)}
    if not adapters:
        return Engine(open_for_generation(run, make_stack), rows, slots, waiting), models
    opened, base = open_adapters(adapters, run, _warn)
    for folder, (config, _) in zip(adapters, opened, strict=True):
        if config.adapter.name in models:
            raise UserError(
                "serving/model-names-repeat", f"a run and an adapter are both named {name}: rename one of their folders"
            )
        models[config.adapter.name] = describe(folder, config.adapter.name, config.adapter.name)
    # the one whose base is held whole serves all: DoRA's
    held = next((config for config, _ in opened if config.adapter.kind == "dora"), opened[0][0])
    shortest = min(open_run(folder).model.context for folder in (run, *adapters))
    stack = make_stack(on_one_device(held.changed(model=opened[0][0].model)), base)
    engine = Engine(stack, rows, min(slots or shortest, shortest), waiting)
    try:
        for config, tensors in opened:
            engine.add_adapter(config, tensors)
    except BaseException:
        engine.close()
        raise
    return engine, models


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)

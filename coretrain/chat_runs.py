"""Runs that train on conversations: which chat template they use, where it is kept, and questions to a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coretrain.bases import base_run
from coretrain.checkpoint import write_atomically
from coretrain.command import Command, open_run, run_of
from coretrain.data.template import Template, Unfit, open_template
from coretrain.data.tokenizer import Tokenizer
from coretrain.errors import UserError
from coretrain.hf_tokenizer import CHAT_TEMPLATE


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


def keep_template(folder: Path, template: Template) -> None:
    """Write the template into a run's folder, so that the folder can be talked to and exported alone."""
    write_atomically(folder / CHAT_TEMPLATE, template.source)


def chat_prompts(
    folder: Path, tokenizer: Tokenizer, questions: Sequence[str]
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Ids of each question with the head of its answer, by the run's template; and the ids that end an answer.

    Raises `UserError` where the run has no template, or it refuses a question.
    """
    path = run_of(folder) / CHAT_TEMPLATE
    if not path.is_file():
        raise UserError(
            f"--chat: {folder} has no {CHAT_TEMPLATE}: train it with data.format = chat, or put its model's there"
        )
    template = open_template(str(path), tokenizer, open_run(folder).data.chat_date)
    ends = (*tokenizer.ends, template.end())
    try:
        return [template.question(text) for text in questions], tuple(dict.fromkeys(ends))
    except Unfit as error:
        raise UserError(f"--chat: {error}: ask another question") from None

"""Runs that train on conversations: which chat template they use, where it is kept, and questions to a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of, write_atomically
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.runs.folder import open_run, run_of
from coretrain.tokenizers.chat_template import Template, open_template
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.tokenizer import Tokenizer


def keep_template(folder: Path, template: Template) -> None:
    """Write the template into a run's folder, so that the folder can be talked to and exported alone."""
    write_atomically(folder / CHAT_TEMPLATE, template.source)


def template_changed(folder: Path) -> str:
    """That a run's template isn't the one that it was trained with, in a sentence, or ''; old checkpoints don't say."""
    path = run_of(folder) / CHAT_TEMPLATE
    newest = CheckpointFolder(path.parent / "checkpoints").newest_sealed()
    trained = newest[1].beside.get(CHAT_TEMPLATE) if newest else None
    if newest is None or trained is None or not path.is_file() or sha256_of(path) == trained:
        return ""
    return f"{path} was changed since {newest[0].name} was trained with it: answers may be worse"


def chat_prompts(
    folder: Path, tokenizer: Tokenizer, questions: Sequence[str]
) -> tuple[list[list[int]], tuple[int, ...]]:
    """Ids of each question with the head of its answer, by the run's template; and the ids that end an answer.

    Raises `UserError` where the run has no template, or it refuses a question.
    """
    template, ends = open_chat(folder, tokenizer)
    try:
        return [template.question(text) for text in questions], ends
    except TemplateError as error:
        raise UserError("runs/question-refused", f"{error}: ask another question") from None


def open_chat(folder: Path, tokenizer: Tokenizer) -> tuple[Template, tuple[int, ...]]:
    """A run's chat template, and the ids that end an answer. Raises `UserError` where it has none that can be used."""
    path = run_of(folder) / CHAT_TEMPLATE
    if not path.is_file():
        raise UserError(
            "runs/chat-template-missing",
            f"{folder} has no {CHAT_TEMPLATE}: train it with data.format = chat, or put its model's there",
        )
    template = open_template(str(path), tokenizer, open_run(folder).data.chat_date)
    return template, tuple(dict.fromkeys((*tokenizer.ends, template.end())))

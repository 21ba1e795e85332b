"""The tokenizer and the chat template that a run's folder keeps, so that it can be moved, asked and gone on with."""

from __future__ import annotations

from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import typed_path
from coretrain.config.run import RunConfig
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.registry import saved_tokenizer


def with_own_files(config: RunConfig, run: Path | None) -> RunConfig:
    """The config by which a run's data are opened: tokenizer and template are the files that it keeps, if it has any.

    What its config names may lie elsewhere by now, or nowhere: a base's folder, or the run's own under another name.
    """
    own: dict[str, str] = {}
    if run is not None and (tokenizer := saved_tokenizer(run)):
        own["tokenizer"] = str(tokenizer.absolute())
    if run is not None and config.data.format != "text" and (run / CHAT_TEMPLATE).is_file():
        own["chat_template"] = str((run / CHAT_TEMPLATE).absolute())
    return config.changed(**{f"data__{name}": path for name, path in own.items()})


def first_template(config: RunConfig, found: str | None) -> str | None:
    """The chat template that an imported run keeps: the one that its config names, or else the one `found` with it."""
    path = config.data.chat_template
    if path is None:
        return found
    try:
        return typed_path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise UserError(
            "runs/chat-template-unreadable",
            f"data.chat_template = {path} can't be read: give a file of a Jinja template",
        ) from None

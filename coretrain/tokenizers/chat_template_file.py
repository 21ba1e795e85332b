"""The chat template in a folder of Hugging Face's or of a run."""

from __future__ import annotations

from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import read_json

CHAT_TEMPLATE = "chat_template.jinja"
"""How turns become text, where the model was trained for chat: kept in a run's folder and in Hugging Face's."""


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a run or of a Hugging Face folder, if it has one. Raises `UserError` where it is no text."""
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(
                "tokenizers/template-not-utf-8",
                f"{path} is no text in UTF-8: restore it, or delete it to go without one",
            ) from None
    facts = folder / "tokenizer_config.json"
    template = read_json(facts, "the tokenizer's facts").get("chat_template") if facts.is_file() else None
    if isinstance(template, list):  # several by name
        named = (one for one in template if isinstance(one, dict))
        template = next((one.get("template") for one in named if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None

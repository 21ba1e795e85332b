"""The chat template in a folder of Hugging Face's or of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coretrain.base.errors import UserError
from coretrain.base.files import read_json

CHAT_TEMPLATE = "chat_template.jinja"
"""How turns become text, where the model was trained for chat: kept in a run's folder and in Hugging Face's."""
FURTHER = "additional_chat_templates"
"""Hugging Face's folder of templates by name."""
DEFAULT, WITH_TOOLS = "default", "tool_use"
"""The names of those that are taken by themselves; others are for who asks for them by name."""


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a run or of a Hugging Face folder, if it has one.

    Of several by name, it is one that does as the default one, and with tools as the one for tools, as transformers
    takes them; its files go before those in tokenizer_config.json. Raises `UserError` where it is no text.
    """
    found = {DEFAULT: path} if (path := folder / CHAT_TEMPLATE).is_file() else {}
    found |= {path.stem: path for path in sorted((folder / FURTHER).glob("*.jinja"))}
    if found:
        return one_template({name: _text(path) for name, path in found.items()})
    facts = folder / "tokenizer_config.json"
    template = read_json(facts, "the tokenizer's facts").get("chat_template") if facts.is_file() else None
    if isinstance(template, list) and all(isinstance(one, dict) for one in template):  # several by name
        template = {one.get("name"): one.get("template") for one in template}
    if isinstance(template, dict) and all(isinstance(text, str) for pair in template.items() for text in pair):
        return one_template(template)
    if template is not None and not isinstance(template, str):
        raise UserError(
            "tokenizers/template-not-text",
            f"{facts}: chat_template is no text, nor a list of texts by name: restore it, or delete it to go without "
            "one",
        )
    return template


def one_template(named: Mapping[str, str]) -> str | None:
    """Templates by name as a single one, by the rule by which transformers chooses; None where there is none.

    Without a default one it refuses every conversation without tools, as transformers does.
    """
    if not named:
        return None
    names = ", ".join(sorted(named))
    missing = (
        f"{{{{ raise_exception('of several chat templates, {names}, none is called {DEFAULT}: give one as "
        "data.chat_template') }}"
    )
    default = named.get(DEFAULT, missing)
    if WITH_TOOLS not in named:
        return default
    # the empty outputs keep Jinja from cutting the line ends and blanks beside its blocks
    parts = ("{% if tools is not none %}", named[WITH_TOOLS], "{% else %}", default, "{% endif %}")
    return "{{ '' }}".join(part.removesuffix("\n") for part in parts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(
            "tokenizers/template-not-utf-8",
            f"{path} is no text in UTF-8: restore it, or delete it to go without one",
        ) from None

"""Jinja as transformers sets it up for chat templates."""

from __future__ import annotations

import datetime
import json
from typing import Any


class TemplateError(Exception):
    """Why a conversation can't be turned into tokens by a template; `args[0]` is the reason."""


def environment(date: datetime.date) -> Any:
    """A sandbox that can change nothing, with blocks without their line ends, transformers' filters and functions, and
    a clock that stands at `date`."""
    from jinja2.ext import Extension, loopcontrols

    from coretrain.tokenizers.template_limits import LimitedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what transformers masks; here the turns tell it, and the mark says nothing."""

        tags = {"generation"}  # noqa: RUF012  # Jinja's own attribute

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = LimitedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.add_filter("tojson", to_json)
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = date.strftime
    return made


def variables_of(source: str, date: datetime.date) -> frozenset[str]:
    """Names that a template reads and doesn't set itself, functions left out."""
    from jinja2 import meta

    made = environment(date)
    return frozenset(meta.find_undeclared_variables(made.parse(source)) - made.globals.keys())

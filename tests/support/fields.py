"""Every field of a config with its default, its type and its exact limits, as the sections themselves say them.

`python -m tests.support.fields` writes the golden file again after a field has changed on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic_core import PydanticUndefined, to_jsonable_python

from coretrain.config import fields as kinds
from coretrain.config.data import MixturePart
from coretrain.config.fields import Section
from coretrain.config.load import describe_type, fields
from coretrain.config.model import RopeScaling

GOLDEN = Path(__file__).resolve().parents[1] / "config" / "fields.txt"
SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
NESTED = {"model.rope_scaling": RopeScaling, "data.mixture": MixturePart}
"""Tables inside of a section's field."""


def every_field() -> dict[str, tuple[type[Section], str]]:
    """Section and own name of each field, by its dotted name; those of tables inside of fields too."""
    inner = {f"{name}.{leaf}": (section, leaf) for name, section in NESTED.items() for leaf in section.model_fields}
    return fields() | inner


def limits_of(section: type[Section], leaf: str) -> dict[str, int | float]:
    """{sign: bound} of a number, exactly; how far counts go is one of them."""
    schema = section.model_json_schema()["properties"][leaf]
    schema = next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
    found = {sign: schema[word] for word, sign in SIGNS.items() if word in schema}
    if any(getattr(one, "func", None) is kinds._countable for one in _metadata(section, leaf)) and "<=" not in found:
        found["<="] = kinds.COUNTABLE
    return found


def _metadata(section: type[Section], leaf: str) -> Iterator[Any]:
    def inside(annotation: Any) -> Iterator[Any]:
        yield from getattr(annotation, "__metadata__", ())
        for argument in get_args(annotation):
            yield from inside(argument)

    info = section.model_fields[leaf]
    yield from info.metadata
    yield from inside(info.annotation)


def golden() -> str:
    """The golden file's text: a line for each field."""
    lines = []
    for name, (section, leaf) in sorted(every_field().items()):
        default = section.model_fields[leaf].get_default(call_default_factory=True)
        value = "must be given" if default is PydanticUndefined else json.dumps(to_jsonable_python(default))
        limits = "".join(f", {sign} {bound!r}" for sign, bound in limits_of(section, leaf).items())
        lines.append(f"{name} = {value}  ({describe_type(section, leaf).split(', ')[0]}{limits})\n")
    return "".join(lines)


if __name__ == "__main__":
    GOLDEN.write_text(golden())

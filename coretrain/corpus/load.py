"""Recipes from presets, TOML files and `section.field=value`; every fault is one sentence."""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coretrain.base.errors import UserError, meant
from coretrain.base.files import typed_path
from coretrain.base.parse import LARGEST_TOML, from_toml, read_bytes, shown
from coretrain.config.fields import Section
from coretrain.corpus.presets import PRESETS, presets
from coretrain.corpus.recipe import Recipe, fields, is_text

Sets = Sequence[tuple[str, str]]
"""(dotted field, text) as they were typed after --set."""


def load_recipe(name_or_path: str, sets: Sets = (), inputs: Sequence[str] = ()) -> Recipe:
    """A preset by name or a TOML file by path, with some fields set otherwise; `inputs`, if any, are what is read.

    Raises `UserError`, which names the field or the file and the way out.
    """
    path = _file(name_or_path)
    try:
        raw = from_toml(read_bytes(path, LARGEST_TOML).decode())
    except ValueError as error:
        raise UserError("corpus/recipe-not-toml", f"{path} is not valid TOML: {error}") from None
    raw.setdefault("name", path.stem)
    if inputs:
        section = raw.setdefault("input", {})
        if isinstance(section, dict):
            section["paths"] = list(inputs)
    return build_recipe(with_sets(raw, sets), str(path), sets)


def _file(source: str) -> Path:
    given = typed_path(source)
    if source.lower().endswith(".toml"):
        if given.is_file():
            return given
        raise UserError(
            "corpus/no-recipe-file",
            f"there is no file {shown(source)}: give the path of a recipe, or one of {', '.join(presets())}",
        )
    path = PRESETS / f"{source}.toml"
    if given.parent == Path() and source and path.is_file():
        return path
    raise UserError(
        "corpus/unknown-recipe",
        f"{meant(source, presets())}{shown(source)} is no recipe: give the path of a .toml file, or one of "
        f"{', '.join(presets())}",
    )


@functools.cache
def known_fields() -> dict[str, tuple[type[Section], str]]:
    """Every dotted field with its section and its own name."""
    return {key: (section, leaf) for key, section, leaf in fields()}


def with_sets(raw: Mapping[str, Any], sets: Sets) -> dict[str, Any]:
    """A copy of nested mappings with some fields set; the text is read as TOML, or else kept as words."""
    result: dict[str, Any] = copy.deepcopy(dict(raw))
    for key, text in sets:
        if key not in known_fields():
            raise UserError("corpus/unknown-field", f"--set {shown(key)}: {_unknown(key)}")
        *parents, leaf = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(
                    "corpus/not-a-section", f"{parent} = {shown(place, True)} is not a section: write [{parent}]"
                )
        place[leaf] = text if is_text(*known_fields()[key]) else _value(text)
    return result


def parse_sets(words: Sequence[str]) -> list[tuple[str, str]]:
    """`field=value` words as pairs. Raises `UserError` for a word that is none."""
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(
                "corpus/set-without-value", f"--set {shown(word)}: write field=value, as filters.gopher.min_words=30"
            )
        pairs.append((key.strip(), value.strip()))
    return pairs


def _value(text: str) -> Any:
    try:
        found = from_toml(f"value = {text}")
    except ValueError:
        return text
    return found["value"] if found.keys() == {"value"} else text


def _unknown(key: str) -> str:
    known = list(known_fields())
    tail = key.rsplit(".", 1)[-1]
    near = (
        difflib.get_close_matches(key, known, 1, 0.75)
        or [name for name in known if name.endswith(f".{tail}")][:1]
        or difflib.get_close_matches(key, known, 1, 0.5)
    )
    return f"there is no such field: did you mean {near[0]}?" if near else "there is no such field: see docs/corpus.md"


def build_recipe(raw: Mapping[str, Any], where: str, sets: Sets = ()) -> Recipe:
    """Validate nested mappings; the first fault becomes one sentence, which names `where` the field stands."""
    try:
        recipe = Recipe.model_validate(raw)
        recipe.every_rule()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        inside = next((name for name in known_fields() if key.startswith(f"{name}.")), key)
        key = key if first["type"] == "extra_forbidden" else inside  # behind a field: kinds of values, places in lists
        typed = dict(sets)
        if "/" in first["type"]:
            raise UserError(first["type"], f"{where}: {first['msg']}") from None
        if first["type"] == "extra_forbidden":
            raise UserError("corpus/unknown-field-in-recipe", f"{where}: {key}: {_unknown(key)}") from None
        value = f"--set {key}={shown(typed[key])}" if key in typed else f"{where}: {key} = {_shown(raw, key)}"
        message = first["msg"]
        if first["type"] == "literal_error":
            names = [name for name in re.findall(r"[\w.-]+", first["ctx"]["expected"]) if name != "or"]
            message = f"{meant(str(first['input']), names)}It is one of {', '.join(names)}"
        elif first["type"] == "tuple_type":
            message = """It is a list, as ["a", "b"]"""
        raise UserError(
            "corpus/value-wrong", f"{value} is wrong: {message[0].lower()}{message[1:]}{_meaning(key)}"
        ) from None
    return recipe


def _shown(raw: Any, key: str) -> str:
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return shown(raw, quoted=True)


def _meaning(key: str) -> str:
    found = known_fields().get(key)
    words = found[0].model_fields[found[1]].description if found else None
    return f" ({words})" if words else ""

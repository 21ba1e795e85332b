"""Configs from presets, TOML files and dotted overrides; every fault is one sentence.

Sources, later ones win: the defaults, a TOML file (`configs/NAME.toml` or a path), `--section.field value`.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from coretrain.base.errors import UserError
from coretrain.base.parse import LARGEST_TOML, TooDeepError, from_json, from_toml, read_bytes, shown
from coretrain.config.fields import Section
from coretrain.config.run import RunConfig
from coretrain.config.training import ScheduleConfig

INSTALLED = Path(__file__).resolve().parent / "presets"
PRESETS = INSTALLED if INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
"""The presets' folder: beside this file in an installed copy, where setup.py puts it, and configs/ in a checkout."""


def presets() -> list[str]:
    """Names of the configs that ship with twintrain."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(name_or_path: str | None = None, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Load a preset by name or a TOML file by path (None: `tiny`), then apply dotted overrides.

    Raises `UserError`, which names the field or the file and the way out.
    """
    source = "tiny" if name_or_path is None else name_or_path
    path = Path(source) if source.endswith(".toml") else PRESETS / f"{source}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(source, presets(), 1)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(presets())}"
        raise UserError("config/unknown-config-name", f"no config named {shown(source)}: {hint}")
    try:
        raw = from_toml(read_bytes(path, LARGEST_TOML).decode())
    except ValueError as error:
        raise UserError("config/toml-invalid", f"{path} is not valid TOML: {error}") from None
    raw.setdefault("name", path.stem)
    raw = _shorter_warmup(apply_overrides(raw, overrides), {key for key, _ in overrides})
    return build_config(raw, str(path), overrides)


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A copy of `raw` with each ("section.field", "text") set; the text is read as TOML, or else kept as a string."""
    result: dict[str, Any] = copy.deepcopy(dict(raw))
    for key, text in overrides:
        known_key(key)
        *parents, leaf = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(
                    "config/not-a-section",
                    f"{parent} = {shown(place, True)} is not a section: write [{parent}] with its fields below it",
                )
        if text.lower() in ("none", "null"):
            place.pop(leaf, None)  # back to the default
            continue
        section, field = fields()[key]
        is_text = section.model_fields[field].annotation is str
        try:
            place[leaf] = _value(text)
        except TooDeepError as error:
            if not is_text:
                raise UserError("config/value-nested-too-deep", f"--{key} {shown(text)} is wrong: {error}") from None
            place[leaf] = text
        if is_text and not isinstance(place[leaf], str):
            place[leaf] = text  # a folder named 2026 is a name, not a number
    return result


def _value(text: str) -> Any:
    """What a word on the command line says: TOML, an object of JSON, or else a text. Raises `TooDeepError`."""
    readers: tuple[Callable[[str], Any], ...] = (_toml_value, from_json) if text.startswith("{") else (_toml_value,)
    for read in readers:
        try:
            return read(text)
        except TooDeepError:
            raise
        except ValueError:
            pass
    return {"True": True, "False": False}.get(text, text)


def _toml_value(text: str) -> Any:
    found = from_toml(f"value = {text}")
    if found.keys() != {"value"}:
        raise ValueError("more than a value: lines of their own")
    return found["value"]


def _shorter_warmup(raw: dict[str, Any], overridden: Set[str]) -> dict[str, Any]:
    """`raw`, its warm-up a tenth of train.updates where only those were overridden, and it no longer fits into them."""
    if "train.updates" in overridden and not overridden & {"schedule.warmup_updates", "schedule.horizon"}:
        schedule, updates = raw.setdefault("schedule", {}), raw.get("train", {}).get("updates")
        if not isinstance(schedule, dict):
            return raw  # which is refused when all is validated
        warmup = schedule.get("warmup_updates", ScheduleConfig.model_fields["warmup_updates"].default)
        whole = isinstance(updates, int) and isinstance(warmup, int) and not schedule.get("horizon")
        if whole and warmup > updates > 0:
            schedule["warmup_updates"] = updates // 10
    return raw


def fields() -> dict[str, tuple[type[Section], str]]:
    """Every dotted field name, with the section class and the field's own name."""
    found: dict[str, tuple[type[Section], str]] = {}
    for name, info in RunConfig.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Section):
            found |= {f"{name}.{leaf}": (section, leaf) for leaf in section.model_fields}
        else:
            found[name] = (RunConfig, name)
    return found


def known_key(key: str) -> None:
    """Raise `UserError`, with the nearest right name, unless `key` is a field."""
    known = fields()
    if key in known:
        return
    leaf = key.rsplit(".", 1)[-1]
    near = (
        difflib.get_close_matches(key, known, 1, 0.7)
        or [name for name in known if name.endswith("." + leaf)][:1]
        or difflib.get_close_matches(key, known, 1, 0.5)
    )
    raise UserError(
        "config/unknown-field",
        f"unknown field {key}" + (f": did you mean {near[0]}?" if near else ": see --help for all fields"),
    )


def build_config(raw: Mapping[str, Any], where: str, typed: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Validate a nested mapping into a `RunConfig`; every fault becomes one sentence.

    It names `where` the fields stand, or those of them that were `typed` as options.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        words = {name: f"--{name} {shown(text)}" for name, text in typed}
        if words and first["type"] == "value_error":  # of several fields together
            where = f"{where} with {' '.join(words.values())}"
        if first["type"] == "extra_forbidden":
            try:
                known_key(key)
            except UserError as unknown:
                raise UserError("config/unknown-field-in-file", f"{where}: {unknown}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise UserError("config/fields-conflict", f"{where}: {message}") from None
        value = words.get(key) or (f"{where}: {key} = {shown(first['input'], quoted=True)}" if key else where)
        raise UserError(
            "config/value-wrong", f"{value} is wrong: {message[0].lower() + message[1:]}{_meaning(key)}"
        ) from None


def config_from_json(text: str) -> RunConfig:
    """Read what `RunConfig.to_json` wrote."""
    return build_config(from_json(text), "the run's config")


def _meaning(key: str) -> str:
    found = fields().get(key)
    return f" ({found[0].model_fields[found[1]].description})" if found else ""


def describe_type(section: type[Section], leaf: str) -> str:
    """A field's type and limits in a few words, for --help."""
    info = section.model_fields[leaf]

    def words(annotation: Any) -> str:
        args = list(get_args(annotation))
        if hasattr(annotation, "__metadata__"):
            return words(args[0])
        if args and all(isinstance(arg, str) for arg in args):
            return " | ".join(args)
        if args and getattr(annotation, "__origin__", None) is not tuple:
            return " | ".join(words(arg) for arg in args if arg is not type(None))
        return "list" if args else getattr(annotation, "__name__", str(annotation))

    schema = section.model_json_schema()["properties"][leaf]
    schema = next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[word]:g}" for word, sign in signs.items() if word in schema)
    return words(info.annotation) + (f", {limits}" if limits else "")

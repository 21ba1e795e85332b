"""Configs from presets, TOML files and dotted overrides; every fault is one sentence.

Sources, later ones win: the defaults, a TOML file (`configs/NAME.toml` or a path), `--section.field value`.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from coretrain.base.errors import UserError, meant
from coretrain.base.files import typed_path
from coretrain.base.parse import LARGEST_TOML, TooDeepError, from_json, from_toml, read_bytes, shown
from coretrain.config.fields import Section
from coretrain.config.run import RunConfig
from coretrain.config.training import OptimizerConfig, ScheduleConfig, TrainConfig

INSTALLED = Path(__file__).resolve().parent / "presets"
PRESETS = INSTALLED if INSTALLED.is_dir() else Path(__file__).resolve().parents[2] / "configs"
"""The presets' folder: beside this file in an installed copy, where setup.py puts it, and configs/ in a checkout."""

UNSAID: dict[str, dict[str, Any]] = {"health": {"lag": 0}}
"""Fields that runs of earlier versions don't have, as those runs had them; elsewhere their defaults count."""


def presets() -> list[str]:
    """Names of the configs that ship with twintrain."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def _by_size(name: str) -> tuple[str, float, str]:
    """Sorts a family of presets by their parameters: 350m before 1558m."""
    family, _, size = name.partition("-")
    fits = re.fullmatch(r"([0-9]+)([mb])", size)
    return family, float(fits[1]) * {"m": 1e6, "b": 1e9}[fits[2]] if fits else math.inf, name


def load_config(name_or_path: str | None = None, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Load a preset by name or a TOML file by path (None: `tiny`), then apply dotted overrides.

    Raises `UserError`, which names the field or the file and the way out.
    """
    path = _config_file("tiny" if name_or_path is None else name_or_path)
    try:
        raw = from_toml(read_bytes(path, LARGEST_TOML).decode())
    except ValueError as error:
        raise UserError("config/toml-invalid", f"{path} is not valid TOML: {error}") from None
    raw.setdefault("name", re.sub(r"[^A-Za-z0-9._-]", "-", path.stem))
    raw = _following(apply_overrides(raw, overrides), {key for key, _ in overrides})
    return build_config(raw, str(path), overrides)


def _config_file(source: str) -> Path:
    """The file of a preset's name or a path. Raises `UserError`, which says what else there is."""
    path = typed_path(source) if source.lower().endswith(".toml") else PRESETS / f"{source}.toml"
    if path.is_file():
        return path
    given, name = typed_path(source), shown(source)
    if source and given.is_dir():
        way = (
            f"go on with it by --resume {name}"
            if (given / "config.json").is_file()
            else "give the path of a .toml file, or a preset"
        )
        raise UserError("config/config-is-folder", f"{name} is a folder, not a config: {way}")
    if given.is_file():
        raise UserError(
            "config/config-not-toml",
            f"{name} is there, but a config is a TOML file: write its fields as TOML, in {given.stem or 'my'}.toml "
            f"({PRESETS / 'tiny.toml'} shows how)",
        )
    if source.lower().endswith(".toml") or given.parent != Path():
        raise UserError("config/no-such-file", f"there is no file {name}: give the path of a .toml file, or a preset")
    raise UserError("config/unknown-config-name", f"no config named {name}: {_nearest_presets(source)}")


def _nearest_presets(source: str) -> str:
    if Path(f"{source}.toml").is_file():
        return f"did you mean the file {source}.toml?"
    names = sorted(presets(), key=_by_size)
    if near := difflib.get_close_matches(source.lower(), names, 1, 0.8):
        return f"did you mean {near[0]}?"
    # gpt2 of gpt2-124m, gpt2-350m, ...
    family = [name for name in names if name.split("-")[0] == source.lower().split("-")[0]]
    if len(family) > 1:
        return f"there are {', '.join(family)}; did you mean {family[0]}?"
    near = family or difflib.get_close_matches(source.lower(), names, 1)
    return f"did you mean {near[0]}?" if near else f"presets are {', '.join(names)}"


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
        is_text = section.model_fields[field].annotation in (str, str | None)
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


def _following(raw: dict[str, Any], overridden: Set[str]) -> dict[str, Any]:
    """`raw` with the values that follow other fields, the same wherever those were written.

    The warm-up is a tenth of the horizon (of train.updates, where there is none) where it would be longer, and neither
    stands beside these, in the file or on the command line, nor was given later. min_lr is a tenth of optimizer.lr
    where nobody has given it and it would be above.
    """
    schedule = raw.get("schedule", {})
    train, optimizer = raw.get("train", {}), raw.get("optimizer", {})
    if not all(isinstance(section, dict) for section in (schedule, train, optimizer)):
        return raw  # refused where it is validated
    found = dict(schedule)
    updates = _number(train, "updates", TrainConfig)
    horizon = _number(schedule, "horizon", ScheduleConfig) or updates
    warmup = _number(schedule, "warmup_updates", ScheduleConfig)
    counted = "schedule.horizon" if schedule.get("horizon") else "train.updates"
    shorter = overridden & {counted, "schedule.horizon"} and "schedule.warmup_updates" not in overridden
    if ("warmup_updates" not in schedule or shorter) and horizon and warmup and warmup > horizon > 0:
        found["warmup_updates"] = int(horizon // 10)
    lr, lowest = _number(optimizer, "lr", OptimizerConfig), _number(schedule, "min_lr", ScheduleConfig)
    if "min_lr" not in schedule and lr and lowest and lowest > lr > 0:
        found["min_lr"] = lr / 10
    return {**raw, "schedule": found} if found else raw


def _number(section: Mapping[str, Any], leaf: str, owner: type[Section]) -> float | None:
    """A field's number as it will be read, or its default; None where it is no number."""
    value = section.get(leaf, owner.model_fields[leaf].default)
    if isinstance(value, str):  # "3" is taken for 3
        with contextlib.suppress(ValueError):
            value = float(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


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
        if words and "/" in first["type"]:  # the code of a conflict of several fields
            where = f"{where} with {' '.join(words.values())}"
        if first["type"] == "extra_forbidden":
            try:
                known_key(key)
            except UserError as unknown:
                raise UserError("config/unknown-field-in-file", f"{where}: {unknown}") from None
        message = first["msg"]
        if "/" in first["type"]:
            raise UserError(first["type"], f"{where}: {message}") from None
        value = words.get(key) or (f"{where}: {key} = {shown(first['input'], quoted=True)}" if key else where)
        if first["type"] == "literal_error":
            names = [name for name in re.findall(r"[\w.-]+", first["ctx"]["expected"]) if name != "or"]
            message = f"{meant(str(first['input']), names)}It is one of {', '.join(names)}"
        elif first["type"] == "string_pattern_mismatch":
            message = "a letter or sign is in it that it doesn't take"
        raise UserError(
            "config/value-wrong", f"{value} is wrong: {message[0].lower() + message[1:]}{_meaning(key)}"
        ) from None


def config_from_json(text: str, where: str = "the run's config") -> RunConfig:
    """Read what `RunConfig.to_json` wrote; `where` it stands is named by what is wrong with it."""
    return build_config(recorded(from_json(text)), where)


def recorded(raw: Any) -> Any:
    """What `RunConfig.to_json` wrote, as nested mappings, with what an earlier version's runs did and didn't say."""
    for section, said in UNSAID.items():
        own = raw.get(section, {}) if isinstance(raw, dict) else None
        raw = raw | {section: said | own} if isinstance(own, dict) else raw
    return raw


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
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return "table"
        return "list" if args else getattr(annotation, "__name__", str(annotation))

    schema = section.model_json_schema()["properties"][leaf]
    schema = next((option for option in schema.get("anyOf", ()) if option.get("type") != "null"), schema)
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[word]:g}" for word, sign in signs.items() if word in schema)
    return words(info.annotation) + (f", {limits}" if limits else "")

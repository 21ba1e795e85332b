"""One run, written down: `RunConfig`, its sections together, and how it is loaded.

Sources, later ones win: the defaults below, a TOML file (`configs/NAME.toml` or a path), `--section.field value`.
"""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import Field, ValidationError, model_validator

from coretrain.errors import UserError
from coretrain.sections import (
    AdapterConfig,
    CheckpointConfig,
    DataConfig,
    ExecutionConfig,
    HealthConfig,
    JournalConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    RopeScaling,
    ScheduleConfig,
    Section,
    TrainConfig,
)

__all__ = [
    "CONFIG_VERSION",
    "PRESETS",
    "AdapterConfig",
    "CheckpointConfig",
    "DataConfig",
    "ExecutionConfig",
    "HealthConfig",
    "JournalConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "PrecisionConfig",
    "RopeScaling",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "TrainConfig",
    "apply_overrides",
    "build_config",
    "describe_type",
    "fields",
    "known_key",
    "load_config",
    "presets",
    "until",
]

CONFIG_VERSION = 1
PRESETS = Path(__file__).resolve().parent.parent / "configs"


class RunConfig(Section):
    """A whole run."""

    version: int = Field(CONFIG_VERSION, ge=1, le=CONFIG_VERSION, description="Version of this format.")
    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="Name of the run and of its folder.")
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    precision: PrecisionConfig = Field(default_factory=lambda: PrecisionConfig())
    execution: ExecutionConfig = Field(default_factory=lambda: ExecutionConfig())
    parallel: ParallelConfig = Field(default_factory=lambda: ParallelConfig())
    adapter: AdapterConfig = Field(default_factory=lambda: AdapterConfig())
    health: HealthConfig = Field(default_factory=lambda: HealthConfig())
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())
    journal: JournalConfig = Field(default_factory=lambda: JournalConfig())

    @model_validator(mode="before")
    @classmethod
    def _version(cls, raw: Any) -> Any:
        version = raw.get("version", CONFIG_VERSION) if isinstance(raw, Mapping) else CONFIG_VERSION
        if isinstance(version, int) and version > CONFIG_VERSION:
            raise ValueError(
                f"version = {version} is newer than this twintrain's {CONFIG_VERSION}: "
                "upgrade twintrain, or write the config for the older version"
            )
        return raw

    @model_validator(mode="after")
    def _agree(self) -> Self:
        horizon = self.schedule.horizon or self.train.updates
        if self.schedule.kind in ("cosine", "linear", "wsd") and self.schedule.warmup_updates > horizon:
            raise ValueError(
                f"schedule.warmup_updates = {self.schedule.warmup_updates} is longer than the horizon of "
                f"{horizon} updates: shorten the warm-up, or raise train.updates or schedule.horizon"
            )
        if self.schedule.kind != "constant" and self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(
                f"schedule.min_lr = {self.schedule.min_lr:g} is above optimizer.lr = {self.optimizer.lr:g}: "
                "lower it (a tenth of lr is usual)"
            )
        return self

    @property
    def micro_batch(self) -> int:
        """Rows of one micro-batch."""
        return self.train.batch_size // self.train.accumulation

    @property
    def row_tokens(self) -> int:
        """Tokens of a row of a batch: the model's context, or fewer where rows of chat samples are to have."""
        chat = self.data.format == "chat"
        return (self.data.row_tokens if chat else None) or self.model.context

    @property
    def tokens_per_update(self) -> int:
        """Tokens of one update's global batch."""
        return self.train.batch_size * self.row_tokens

    def with_vocab(self, vocab: int) -> RunConfig:
        """The same run with the tokenizer's vocabulary filled in; a smaller one in the config is refused."""
        if self.model.vocab is not None and self.model.vocab < vocab:
            raise UserError(
                f"model.vocab = {self.model.vocab} is smaller than the tokenizer's {vocab}: raise it or leave it out"
            )
        size = vocab if self.model.vocab is None else self.model.vocab
        return self.model_copy(update={"model": self.model.model_copy(update={"vocab": size})})

    def to_json(self) -> str:
        """The config as canonical JSON, as checkpoints and run folders keep it."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> RunConfig:
        """Read what `to_json` wrote."""
        return build_config(json.loads(text), "the run's config")


def until(config: RunConfig, updates: int) -> RunConfig:
    """The same run, ended after so many updates."""
    return config.model_copy(update={"train": config.train.model_copy(update={"updates": updates})})


def presets() -> list[str]:
    """Names of the configs that ship with twintrain."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_config(name_or_path: str | None = None, overrides: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Load a preset by name or a TOML file by path (None: `tiny`), then apply dotted overrides.

    Raises `UserError`, which names the field or the file and the way out.
    """
    source = name_or_path or "tiny"
    path = Path(source) if source.endswith(".toml") else PRESETS / f"{source}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(source, presets(), 1)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(presets())}"
        raise UserError(f"no config named {source}: {hint}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
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
                raise UserError(f"{parent} = {place!r} is not a section: write [{parent}] with its fields below it")
        if text.lower() in ("none", "null"):
            place.pop(leaf, None)  # back to the default
            continue
        place[leaf] = _value(text)
        section, field = fields()[key]
        if section.model_fields[field].annotation is str and not isinstance(place[leaf], str):
            place[leaf] = text  # a folder named 2026 is a name, not a number
    return result


def _value(text: str) -> Any:
    """What a word on the command line says: TOML, an object of JSON, or else a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return json.loads(text) if text.startswith("{") else {"True": True, "False": False}.get(text, text)
    except ValueError:
        return text


def _shorter_warmup(raw: dict[str, Any], overridden: Set[str]) -> dict[str, Any]:
    """`raw`, its warm-up a tenth of train.updates where only those were overridden, and it no longer fits into them."""
    if "train.updates" in overridden and not overridden & {"schedule.warmup_updates", "schedule.horizon"}:
        schedule, updates = raw.setdefault("schedule", {}), raw.get("train", {}).get("updates")
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
    raise UserError(f"unknown field {key}" + (f": did you mean {near[0]}?" if near else ": see --help for all fields"))


def build_config(raw: Mapping[str, Any], where: str, typed: Sequence[tuple[str, str]] = ()) -> RunConfig:
    """Validate a nested mapping into a `RunConfig`; every fault becomes one sentence.

    It names `where` the fields stand, or those of them that were `typed` as options.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        words = {name: f"--{name} {text}" for name, text in typed}
        if words and first["type"] == "value_error":  # of several fields together
            where = f"{where} with {' '.join(words.values())}"
        if first["type"] == "extra_forbidden":
            try:
                known_key(key)
            except UserError as unknown:
                raise UserError(f"{where}: {unknown}") from None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise UserError(f"{where}: {message}") from None
        value = words.get(key) or f"{where}: {key} = {first['input']!r}"
        raise UserError(f"{value} is wrong: {message[0].lower() + message[1:]}{_meaning(key)}") from None


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

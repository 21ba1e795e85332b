"""One run, written down: `RunConfig`, its sections together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from coretrain.base.errors import UserError
from coretrain.base.parse import shown
from coretrain.config.adapter import AdapterConfig
from coretrain.config.align import AlignConfig
from coretrain.config.data import DataConfig
from coretrain.config.evaluation import EvalConfig, check_eval
from coretrain.config.execution import ExecutionConfig, ParallelConfig
from coretrain.config.fields import Section, conflict
from coretrain.config.model import ModelConfig
from coretrain.config.objectives import check_objective
from coretrain.config.schedules import check_schedule
from coretrain.config.training import (
    CheckpointConfig,
    HealthConfig,
    JournalConfig,
    OptimizerConfig,
    PrecisionConfig,
    ScheduleConfig,
    TrainConfig,
)

CONFIG_VERSION = 1


class RunConfig(Section):
    """A whole run."""

    version: int = Field(CONFIG_VERSION, ge=1, le=CONFIG_VERSION, description="Version of this format.")
    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Name of the run and of its folder: of letters a to z, digits, dot, _ and -.",
    )
    model: ModelConfig = Field(default_factory=lambda: ModelConfig())
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig())
    schedule: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig())
    train: TrainConfig = Field(default_factory=lambda: TrainConfig())
    precision: PrecisionConfig = Field(default_factory=lambda: PrecisionConfig())
    execution: ExecutionConfig = Field(default_factory=lambda: ExecutionConfig())
    parallel: ParallelConfig = Field(default_factory=lambda: ParallelConfig())
    adapter: AdapterConfig = Field(default_factory=lambda: AdapterConfig())
    align: AlignConfig = Field(default_factory=lambda: AlignConfig())
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig())
    health: HealthConfig = Field(default_factory=lambda: HealthConfig())
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig())
    journal: JournalConfig = Field(default_factory=lambda: JournalConfig())

    @model_validator(mode="before")
    @classmethod
    def _version(cls, raw: Any) -> Any:
        version = raw.get("version", CONFIG_VERSION) if isinstance(raw, Mapping) else CONFIG_VERSION
        if isinstance(version, int) and version > CONFIG_VERSION:
            raise conflict(
                "config/version-newer",
                f"version = {shown(version)} is newer than this twintrain's {CONFIG_VERSION}: "
                "upgrade twintrain, or write the config for the older version",
            )
        return raw

    @model_validator(mode="after")
    def _agree(self) -> Self:
        check_schedule(self.schedule, self.train, self.optimizer)
        check_objective(self.train, self.align, self.model, self.data, self.parallel, self.adapter)
        check_eval(self.eval, self.parallel)
        return self

    @property
    def micro_batch(self) -> int:
        """Rows of one micro-batch."""
        return self.train.batch_size // self.train.accumulation

    @property
    def row_tokens(self) -> int:
        """Tokens of a row of a batch: the model's context, or fewer where rows of packed samples are to have."""
        return (self.data.row_tokens if self.data.packed else None) or self.model.context

    @property
    def aligned(self) -> AlignConfig:
        """`[align]` with the values that this run's objective gives to what isn't set."""
        return self.align.settled(self.train.objective)

    @property
    def tokens_per_update(self) -> int:
        """Tokens of one update's global batch."""
        return self.train.batch_size * self.row_tokens

    def changed(self, **fields: Any) -> RunConfig:
        """The same run with other values, as `section__field=value`; a bare name is a whole section or a top field.

        The values come from code and are taken as they are. Raises `ValueError` for a field that there isn't.
        """
        whole: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {}
        for name, value in fields.items():
            section, _, field = name.partition("__")
            owner = getattr(self, section, None) if field else self
            if not isinstance(owner, Section) or (field or section) not in type(owner).model_fields:
                raise ValueError(f"RunConfig has no field {name.replace('__', '.')}")
            if field:
                parts.setdefault(section, {})[field] = value
            else:
                whole[section] = value
        for section, values in parts.items():
            whole[section] = whole.get(section, getattr(self, section)).model_copy(update=values)
        return self.model_copy(update=whole)

    def with_vocab(self, vocab: int) -> RunConfig:
        """The same run with the tokenizer's vocabulary filled in; a smaller one in the config is refused."""
        if self.model.vocab is not None and self.model.vocab < vocab:
            raise UserError(
                "config/vocab-too-small",
                f"model.vocab = {self.model.vocab} is smaller than the tokenizer's {vocab}: raise it or leave it out",
            )
        size = vocab if self.model.vocab is None else self.model.vocab
        return self.changed(model__vocab=size)

    def to_json(self) -> str:
        """The config as canonical JSON, as checkpoints and run folders keep it."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)

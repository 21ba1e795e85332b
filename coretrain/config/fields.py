"""What the config's sections are made of: a frozen group of fields, and the kinds of numbers in them."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, LiteralString, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from coretrain.base.numbers import COUNTABLE


def _countable(value: int) -> int:
    if value > COUNTABLE:
        raise PydanticCustomError("too_large", "no run counts further than {most}", {"most": COUNTABLE})
    return value


Countable = AfterValidator(_countable)
"""On every field that counts something: no run counts further than `COUNTABLE`."""
Positive = Annotated[int, Field(ge=1), Countable]
Count = Annotated[int, Field(ge=0), Countable]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
DType = Literal["auto", "float64", "float32", "bfloat16", "float16"]
StackName = Literal["torch", "jax"]
AttentionKernel = Literal["auto", "flash_attn", "sdpa_fa4", "sdpa_fa3", "sdpa", "splash", "cudnn", "xla", "plain"]


class Section(BaseModel):
    """A frozen group of fields; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what pydantic would take for another value: true for 1, and a date in seconds since 1970."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise PydanticCustomError("truth_value", "true and false are no value of it")
        if isinstance(value, int | float) and annotation is datetime.date:
            raise PydanticCustomError("number_for_date", "a date is written as 2024-07-26")
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("null_character", "no text of a config holds a null character")
        return value


def conflict(code: LiteralString, text: str) -> PydanticCustomError:
    """For a validator to raise: fields that don't go together. Code and sentence are as those of a `UserError`, which
    `coretrain.config.load` makes of it.
    """
    return PydanticCustomError(code, "{text}", {"text": text})

"""What the config's sections are made of: a frozen group of fields, and the kinds of numbers in them."""

from __future__ import annotations

from typing import Annotated, Literal, LiteralString

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
DType = Literal["float64", "float32", "bfloat16", "float16"]
StackName = Literal["torch", "jax"]
AttentionKernel = Literal["auto", "flash_attn", "sdpa_fa4", "sdpa_fa3", "sdpa", "splash", "cudnn", "xla", "plain"]


class Section(BaseModel):
    """A frozen group of fields; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def conflict(code: LiteralString, text: str) -> PydanticCustomError:
    """For a validator to raise: fields that don't go together. Code and sentence are as those of a `UserError`, which
    `coretrain.config.load` makes of it.
    """
    return PydanticCustomError(code, "{text}", {"text": text})

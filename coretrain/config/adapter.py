"""An adapter's fields."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from coretrain.config.fields import Fraction, Positive, Section, conflict


class AdapterConfig(Section):
    """Adapters on a frozen base: only they train. lora (Hu et al. 2021): y = W x + scale B A drop(x)."""

    kind: Literal["none", "lora", "dora", "prefix", "bottleneck"] = Field(
        "none",
        description="none: all parameters train; lora: low-rank adapters; dora: those with magnitudes for W's outputs; "
        "prefix: trained keys and values before those of every layer; bottleneck: a small MLP behind each sublayer.",
    )
    name: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Name of the adapter, by which it is switched and merged: of letters a to z, digits, _ and -.",
    )
    base: str | None = Field(
        None, description="Folder of the run whose newest interchange weights stay frozen below the adapter."
    )
    fingerprint: str = Field(
        "", pattern=r"^([0-9a-f]{32})?$", description="Fingerprint of the base's weights; the run fills it in."
    )
    rank: Positive = Field(8, description="Rows r of A and columns of B; at most the smaller side of every target.")
    virtual_tokens: Positive = Field(20, description="prefix: keys and values before those of each layer.")
    bottleneck_width: Positive = Field(64, description="bottleneck: width between down and up.")
    bottleneck_activation: Literal["gelu", "relu", "silu"] = Field(
        "gelu", description="bottleneck: between down and up; gelu is the tanh form."
    )
    alpha: float = Field(8.0, gt=0, description="Scale of the update: alpha / rank, or alpha / sqrt(rank) with rslora.")
    rslora: bool = Field(
        False, description="Scale by alpha / sqrt(rank), which keeps its size at high ranks (Kalajdzievski 2023)."
    )
    dropout: Fraction = Field(0.0, description="Dropout on each adapter's input (an embedding's has none).")
    targets: tuple[str, ...] = Field(
        ("blocks.*.weight",),
        description="Glob patterns over canonical names: matrices of blocks, embed.token, head.weight. "
        "One string is taken apart at its commas. A prefix or bottleneck is of the sublayers whose matrices are named.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        "none", description="Biases that train too: none, all of the model's, or those beside an adapter."
    )

    quantize: Literal["none", "nf4", "int8", "int4"] = Field(
        "none",
        description="Hold the frozen matrices of the base's blocks in few bits (QLoRA, Dettmers et al. 2023): nf4 in "
        "4.13, int4 in 4.25, int8 in 8.25.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _patterns(cls, raw: Any) -> Any:
        return tuple(part.strip() for part in raw.split(",") if part.strip()) if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.targets:
            raise conflict(
                "config/no-adapter-targets",
                "adapter.targets is empty: give a pattern of names, as blocks.*.attention.q.weight",
            )
        low_rank = {"dropout": self.dropout > 0, "rslora": self.rslora, "bias": self.bias == "lora_only"}
        if self.kind in ("prefix", "bottleneck") and (field := next((n for n, on in low_rank.items() if on), None)):
            raise conflict(
                "config/field-of-another-adapter-kind",
                f"adapter.{field} = {getattr(self, field)} is for kinds lora and dora, "
                f"and adapter.kind is {self.kind}: leave adapter.{field} out",
            )
        if self.kind == "dora" and self.quantize != "none":
            raise conflict(
                "config/dora-on-quantized-base",
                "adapter.kind = dora takes norms of whole weights: set adapter.quantize = none, or adapter.kind = lora",
            )
        if self.quantize != "none" and self.kind == "none":
            raise conflict(
                "config/quantized-without-adapter",
                f"adapter.quantize = {self.quantize} is for an adapter's frozen base, and with adapter.kind = none all "
                "weights train: set adapter.kind = lora, or leave adapter.quantize out",
            )
        return self

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

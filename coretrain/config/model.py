"""The model's fields."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from coretrain.base.errors import UserError
from coretrain.config.fields import Fraction, Positive, Section, conflict


class RopeScaling(Section):
    """Rotary frequencies of a model whose context was made longer after it was trained."""

    type: Literal["llama3", "linear"] = Field(
        description="linear: all divided by factor; llama3: those of few turns in original_context (Llama 3.1)."
    )
    factor: float = Field(gt=0, description="What slow frequencies, or all of them, are divided by.")
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: with no more turns than these, by all of factor.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: with no fewer turns than these, not at all.")
    original_context: Positive = Field(8192, description="llama3: the context that the model was trained with first.")

    @model_validator(mode="after")
    def _bands(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise conflict(
                "config/rope-factors-not-in-order",
                f"model.rope_scaling.high_freq_factor = {self.high_freq_factor:g} isn't above low_freq_factor = "
                f"{self.low_freq_factor:g}: Llama 3.1 has 4 and 1",
            )
        return self


class ModelConfig(Section):
    """The GPT: a pre-norm decoder, GPT-2 style or Llama style by its switches."""

    layers: Positive = Field(4, le=10_000, description="Number of decoder blocks.")
    width: Positive = Field(192, description="Width D of the residual stream.")
    heads: Positive = Field(6, description="Query heads H; must divide width unless head_width is given.")
    kv_heads: Positive | None = Field(
        None, description="Key/value heads K (grouped-query attention); must divide heads. Unset: as many as heads."
    )
    head_width: Positive | None = Field(None, description="Width C of one head. Unset: width / heads.")
    mlp_width: Positive | None = Field(
        None, description="Hidden width F of the MLP. Unset: 4 x width (gelu) or 8/3 x width rounded up to 64 (swiglu)."
    )
    context: Positive = Field(256, description="Longest sequence T, in tokens; a training row is this long.")
    vocab: Positive | None = Field(None, description="Vocabulary V. Unset: the tokenizer's, specials included.")
    norm: Literal["layernorm", "rmsnorm"] = Field("layernorm", description="Normalisation before each sublayer.")
    norm_eps: float = Field(1e-5, gt=0, description="Added to the variance inside every norm.")
    position: Literal["learned", "rope"] = Field(
        "learned", description="Learned position embedding, or rotary (half-split, as HF Llama)."
    )
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    rope_scaling: RopeScaling | None = Field(
        None,
        description='Frequencies of a context that was made longer: {type = "llama3", factor = 8.0, ...}. Unset: none.',
    )
    mlp: Literal["gelu", "swiglu"] = Field("gelu", description="MLP: GELU (tanh form) or SwiGLU.")
    bias: bool = Field(True, description="Biases on every linear layer, and on layernorm.")
    tied: bool = Field(True, description="The output head shares the token embedding.")
    score_head: bool = Field(
        False, description="A score for each position beside the logits: of a reward model, or PPO's values."
    )
    init_std: float = Field(
        0.02, gt=0, description="Std of initial weights; residual outputs get std/sqrt(2 x layers)."
    )
    residual_dropout: Fraction = Field(0.0, description="Dropout on each sublayer's output, before the residual sum.")
    embedding_dropout: Fraction = Field(0.0, description="Dropout on the summed embeddings.")

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        if self.head_width is None and self.width % self.heads:
            raise conflict(
                "config/heads-dont-divide-width",
                f"model.heads = {self.heads} does not divide model.width = {self.width}: "
                "choose heads that divide width, or set model.head_width",
            )
        if self.heads % self.kv:
            raise conflict(
                "config/kv-heads-dont-divide-heads",
                f"model.kv_heads = {self.kv_heads} does not divide model.heads = {self.heads}: "
                "every key/value head serves the same number of query heads",
            )
        if self.position == "rope" and self.head % 2:
            raise conflict(
                "config/head-width-odd",
                f"model.head_width = {self.head} is odd, but rotary positions pair its halves: make it even",
            )
        if self.position != "rope" and self.rope_scaling:
            raise conflict(
                "config/scaling-without-rotary-positions",
                f"model.rope_scaling is for rotary positions, and model.position = {self.position}: leave it out",
            )
        return self

    @property
    def kv(self) -> int:
        """Key/value heads K, resolved."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head(self) -> int:
        """Head width C, resolved."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def hidden(self) -> int:
        """MLP hidden width F, resolved."""
        if self.mlp_width is not None:
            return self.mlp_width
        return 4 * self.width if self.mlp == "gelu" else -(-8 * self.width // 3 // 64) * 64

    @property
    def vocabulary(self) -> int:
        """Vocabulary V, once the tokenizer has set it."""
        if self.vocab is None:
            raise UserError(
                "config/model-vocab-not-set",
                "model.vocab is not set: give it, or load the run's data so that the tokenizer sets it",
            )
        return self.vocab

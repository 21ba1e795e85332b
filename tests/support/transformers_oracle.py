"""transformers' Llama with nothing of it in float32, as an oracle in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

llama = transformers.models.llama.modeling_llama


class Float64Norm(llama.LlamaRMSNorm):
    """RMSNorm in the input's dtype: transformers' own goes through float32 even in a float64 model."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class Float64Rotary(llama.LlamaRotaryEmbedding):
    """Rotary tables in float64: transformers' own makes frequencies, angles, cosines and sines in float32."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position_ids[..., None].double() * float64_frequencies(self.config)
        angle = torch.cat([angle, angle], -1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def float64_frequencies(config: Any) -> torch.Tensor:
    """What transformers turns pairs of q and k by, made in float64."""
    default = llama.LlamaRotaryEmbedding.compute_default_rope_parameters
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float", torch.float64)
        frequency, scale = ROPE_INIT_FUNCTIONS.get(config.rope_parameters["rope_type"], default)(config)
    assert (frequency.dtype, scale) == (torch.float64, 1.0)
    return frequency

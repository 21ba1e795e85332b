"""One small model of each kind that files of others can hold, and weights for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from coretrain.config.model import ModelConfig, RopeScaling
from coretrain.contract.parameters import parameter_table

LLAMA: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "mlp": "swiglu", "bias": False, "mlp_width": 80}
SMALL: dict[str, Any] = {"layers": 2, "width": 48, "heads": 4, "vocab": 300, "context": 40}
MODELS = {
    "gpt2": ModelConfig(**SMALL),
    "gpt2 untied": ModelConfig(**SMALL, tied=False, mlp_width=100, norm_eps=1e-4),
    "llama": ModelConfig(**SMALL, **LLAMA),
    "llama grouped untied": ModelConfig(**SMALL, **LLAMA, kv_heads=2, tied=False, rope_theta=5e3, norm_eps=1e-6),
    # 32, 7, 1.5, 0.3... turns in the original context: frequencies kept, in between, and divided by the whole factor
    "llama scaled as 3.1": ModelConfig(
        **SMALL, **LLAMA, rope_scaling=RopeScaling(type="llama3", factor=8.0, original_context=200)
    ),
    "llama biased wide heads": ModelConfig(**SMALL, **LLAMA | {"bias": True}, kv_heads=1, head_width=20),
}
model_kinds = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def perturbed(model: ModelConfig, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Weights in which no two tensors, biases and gains included, could be swapped or dropped unnoticed."""
    draw = np.random.default_rng(11)
    return {
        row.name: (draw.normal(0.2 if row.init == "ones" else 0, 0.15, row.shape) + (row.init == "ones")).astype(dtype)
        for row in parameter_table(model)
    }

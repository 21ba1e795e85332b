"""Tables that both stacks need and that no framework should compute for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coretrain.config import ModelConfig
from coretrain.randomness import dropout_key


def rotary_tables(model: ModelConfig, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines [length, C/2] of the rotary angles, in float64 (Su et al. 2021; half-split as in HF Llama)."""
    half = model.head // 2
    frequency = model.rope_theta ** (-np.arange(half, dtype=np.float64) / half)
    angle = np.arange(length, dtype=np.float64)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


def dropout_keys(model: ModelConfig, seed: int, update: int) -> NDArray[np.uint32]:
    """Keys [1 + 2L] of every dropout site in one update: the embedding, then two for each block."""
    return np.array([dropout_key(seed, update, site) for site in range(1 + 2 * model.layers)], np.uint32)


def uses_dropout(model: ModelConfig) -> bool:
    """Whether any dropout rate is above 0."""
    return model.residual_dropout > 0 or model.embedding_dropout > 0

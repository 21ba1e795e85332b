"""The keys of an update's dropout masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coretrain.config.model import ModelConfig
from coretrain.contract.randomness import dropout_key


def dropout_keys(model: ModelConfig, seed: int, update: int) -> NDArray[np.uint32]:
    """Keys [1 + 2L] of every dropout site in one update: the embedding, then two for each block."""
    return np.array([dropout_key(seed, update, site) for site in range(1 + 2 * model.layers)], np.uint32)


def uses_dropout(model: ModelConfig) -> bool:
    """Whether any dropout rate is above 0."""
    return model.residual_dropout > 0 or model.embedding_dropout > 0

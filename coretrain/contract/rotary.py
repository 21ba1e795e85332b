"""Tables that both stacks need and that no framework should compute for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from coretrain.config.model import ModelConfig


def rotary_tables(model: ModelConfig, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines and sines [length, C/2] of the rotary angles, in float64 (Su et al. 2021; half-split as in HF Llama)."""
    frequency = rotary_frequencies(model)
    if model.rope_scaling:
        frequency = frequency / rotary_divisors(model)
    angle = np.arange(length, dtype=np.float64)[:, None] * frequency
    return np.cos(angle), np.sin(angle)


def rotary_frequencies(model: ModelConfig) -> NDArray[np.float64]:
    """Angle [C/2] by which each pair turns from one position to the next, before `model.rope_scaling`."""
    half = model.head // 2
    return model.rope_theta ** (-np.arange(half, dtype=np.float64) / half)


def rotary_divisors(model: ModelConfig) -> NDArray[np.float64]:
    """What `model.rope_scaling` divides each frequency by, [C/2].

    llama3: the fewer turns a pair makes in the original context, the more, from 1 to the factor. Source: transformers'
    `modeling_rope_utils.py`, 5.23.
    """
    s, ones = model.rope_scaling, np.ones(model.head // 2)
    if s is None:
        return ones
    if s.type == "linear":
        return s.factor * ones
    turns = s.original_context * rotary_frequencies(model) / (2 * np.pi)
    kept = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
    divisors: NDArray[np.float64] = 1 / (kept + (1 - kept) / s.factor)
    return divisors

"""One update of the optimizer: what becomes of parameters and moments, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.config.training import OptimizerConfig

Array = NDArray[np.float64]
Groups = dict[str, dict[str, Array]]
"""Parameters and moments by group and canonical name, as a checkpoint has them."""


def updated(
    o: OptimizerConfig, state: Mapping[str, Mapping[str, Any]], gradients: Mapping[str, Any], lr: float, applied: int
) -> Groups:
    """The state after one update with clipped `gradients`, the one after `applied` others.

    AdamW (Loshchilov and Hutter 2019, algorithm 2) with the decay times the learning rate, as in torch; Adam without
    decay; Muon (Jordan et al. 2024) with Nesterov momentum for the blocks' matrices, at AdamW's size (Liu et al. 2025).
    """
    wide = {g: {n: np.asarray(t, np.float64) for n, t in tensors.items()} for g, tensors in state.items()}
    result: Groups = {group: {} for group in wide}
    t = applied + 1
    for name, p in wide["parameters"].items():
        g = np.asarray(gradients[name], np.float64)
        matrix = p.ndim == 2
        decayed = p * (1 - lr * o.weight_decay) if matrix and o.name != "adam" else p
        if o.name == "muon" and matrix and name.startswith("blocks."):
            momentum = o.muon_momentum * wide["momentum"][name] + (1 - o.muon_momentum) * g
            ahead = o.muon_momentum * momentum + (1 - o.muon_momentum) * g
            size = 0.2 * np.sqrt(max(p.shape))
            result["momentum"][name] = momentum
            result["parameters"][name] = decayed - lr * size * orthogonal(ahead)
        else:
            first = o.beta1 * wide["first_moment"][name] + (1 - o.beta1) * g
            second = o.beta2 * wide["second_moment"][name] + (1 - o.beta2) * g * g
            mean, square = first / (1 - o.beta1**t), second / (1 - o.beta2**t)
            result["first_moment"][name], result["second_moment"][name] = first, second
            result["parameters"][name] = decayed - lr * mean / (np.sqrt(square) + o.eps)
    return result


def orthogonal(matrix: Array) -> Array:
    """Five steps of Muon's quintic on the singular values: U p(p(p(p(p(S / |S|))))) V^T."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / max(float(np.linalg.norm(values)), 1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right

"""What both stacks' update rules share: Muon's constants and parameters, and Adam's bias corrections."""

from __future__ import annotations

from coretrain.config.run import RunConfig
from coretrain.config.training import OptimizerConfig
from coretrain.contract.parameters import Parameter

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's quintic iteration (Jordan et al. 2024), as in torch.optim.Muon."""


def takes_muon(config: RunConfig, row: Parameter) -> bool:
    """Whether Muon updates a parameter: the blocks' matrices, where `optimizer.name` is muon. Adam has all others."""
    return config.optimizer.name == "muon" and row.layer is not None and len(row.shape) == 2


def decay_rate(optimizer: OptimizerConfig) -> float:
    """The decoupled weight decay of the parameters that decay; Adam has none."""
    return 0.0 if optimizer.name == "adam" else optimizer.weight_decay


def bias_corrections(optimizer: OptimizerConfig, applied: int) -> tuple[float, float]:
    """Adam's 1 - beta1^t and 1 - beta2^t of the update that follows `applied` ones."""
    return 1 - optimizer.beta1 ** (applied + 1), 1 - optimizer.beta2 ** (applied + 1)

"""What both update rules take from the contract: Muon's coefficients, which parameters it has, decay, corrections."""

from __future__ import annotations

import inspect
import math
from fractions import Fraction

import pytest
import torch

from coretrain.config.load import load_config
from coretrain.config.training import OptimizerConfig
from coretrain.contract.optimizer import NEWTON_SCHULZ, bias_corrections, decay_rate, takes_muon
from coretrain.contract.parameters import parameter_table


def test_muons_coefficients_are_torchs_and_jordans():
    assert NEWTON_SCHULZ == (3.4445, -4.7750, 2.0315)
    theirs = inspect.signature(torch.optim.Muon).parameters["ns_coefficients"].default
    assert theirs == NEWTON_SCHULZ


def test_muon_has_the_blocks_matrices_alone():
    def taken(name: str) -> set[str]:
        more = [("model.layers", "1"), ("model.vocab", "300"), ("model.tied", "false"), ("optimizer.name", name)]
        config = load_config("tiny", [*more, ("model.position", "learned"), ("model.bias", "true")])
        return {row.name for row in parameter_table(config.model) if takes_muon(config, row)}

    attention = {f"blocks.0.attention.{part}.weight" for part in ("q", "k", "v", "out")}
    mlp = {name for name in taken("muon") if ".mlp." in name}
    assert taken("muon") == attention | mlp
    assert {"blocks.0.mlp.up.weight", "blocks.0.mlp.down.weight"} <= mlp
    assert taken("adamw") == taken("adam") == set()


@pytest.mark.parametrize(("name", "rate"), [("adamw", 0.3), ("adam", 0.0), ("muon", 0.3)])
def test_adam_alone_has_no_decay(name, rate):
    assert decay_rate(OptimizerConfig(name=name, weight_decay=0.3)) == rate


@pytest.mark.parametrize("applied", [0, 1, 9, 199, 4999, 10**6])
def test_bias_corrections_in_exact_fractions(applied):
    """1 - beta^t, t counted from 1: where both betas are still felt, and where nothing is left of them."""
    first, second = bias_corrections(OptimizerConfig(beta1=0.9, beta2=0.999), applied)
    t = applied + 1
    # by log and expm1, which share no rounding with a power; beyond 5000 no Fraction is made
    exact = [
        float(1 - Fraction(n, 1000) ** t) if t <= 5000 else -math.expm1(t * math.log(n / 1000)) for n in (900, 999)
    ]
    assert (first, second) == pytest.approx(exact, rel=1e-12)


def test_the_first_corrections_by_hand():
    # 1 - 0.9 and 1 - 0.95 of the update that follows none, 1 - 0.81 and 1 - 0.9025 of the one after
    optimizer = OptimizerConfig(beta1=0.9, beta2=0.95)
    assert bias_corrections(optimizer, 0) == pytest.approx((0.1, 0.05), rel=1e-14)
    assert bias_corrections(optimizer, 1) == pytest.approx((0.19, 0.0975), rel=1e-14)
    assert bias_corrections(OptimizerConfig(beta1=0.0, beta2=0.0), 0) == (1.0, 1.0)

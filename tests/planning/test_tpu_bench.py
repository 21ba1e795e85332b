"""The bench of what an update takes on TPUs: its cases, and its ratios to a peer's figures."""

from __future__ import annotations

import pytest

from bench.tpu import CASES, config_of, row


@pytest.mark.parametrize("name", CASES)
def test_each_case_has_a_row_on_every_device_of_its_slice(name):
    config, topology = config_of(name, "compute")
    assert config.micro_batch == config.parallel.fsdp == 256
    assert config.parallel.gradient_sum == "compute"
    assert topology in name
    assert name.endswith(str(config.model.context))


def test_a_peers_figures_stand_as_ratios():
    sent = {"all-reduce": 1e9, "reduce-scatter": 3e9, "all-gather": 9e9}
    ours = {"memory": 1.5e9, "heap": 1e9, "gradients": 4e9, "sent": sent, "seconds": 30.0}
    assert row("it", ours, None) == ["it", "1500", "1000", "4.0", "25%", "30"]
    peer = {"memory": 2e9, "gradients": 8e9}
    assert row("it", ours, peer) == ["it", "1500 (0.75x)", "1000", "4.0 (0.50x)", "25%", "30"]
    assert row("it", {"reason": "Used 20G of 16G hbm"}, peer)[1] == "Used 20G of 16G hbm"

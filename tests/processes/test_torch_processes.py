"""What torch's processes refuse, in one sentence; parity/ladder/test_zero.py has what they compute."""

from __future__ import annotations

import pytest

from coretrain.base.errors import UserError
from tests.support.refusal import refused
from torchtrain.parallel import processes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"parallel__fsdp": 2}, ["parallel.fsdp = 2 is for JAX", "parallel.zero = 3"]),
        ({"parallel__context": 2}, ["parallel.context = 2 is for JAX", "checkpoint_activations"]),
        ({"parallel__hosts": 2}, ["parallel.hosts is for JAX", "torchrun"]),
        ({"parallel__offload": "optimizer"}, ["needs DeepSpeed", "parallel.zero = 1, 2 or 3"]),
        ({"parallel__offload": "all", "parallel__zero": 2}, ["needs parallel.zero = 3, not 2"]),
        ({"parallel__zero": 1, "optimizer__name": "muon"}, ["Muon can't orthogonalize", "adamw"]),
        ({"parallel__zero": 1, "precision__compute": "float64"}, ["float64 needs parallel.zero = 0"]),
        ({"parallel__zero_engine": "fsdp2"}, ["zero_engine = fsdp2 shards nothing", "parallel.zero = 1, 2 or 3"]),
        (
            {"parallel__zero_engine": "fsdp2", "parallel__zero": 3, "parallel__offload": "all"},
            ["needs DeepSpeed", "parallel.zero_engine = deepspeed"],
        ),
        ({"parallel__zero_engine": "fsdp2", "parallel__zero": 2, "optimizer__name": "muon"}, ["Muon can't"]),
        ({"parallel__tensor": 2, "optimizer__name": "muon"}, ["Muon orthogonalizes whole"]),
        ({"parallel__pipeline": 2, "parallel__zero": 1}, ["set one of them to its default"]),
        ({"parallel__data": 2}, ["there are 1", "start 2 processes", "--spawn"]),
    ],
)
def test_refusals_name_the_field_and_the_way_out(small_config, fields, words):
    with pytest.raises(UserError) as refusal:
        processes.join(small_config(**fields))
    for word in words:
        assert word in str(refusal.value)


def test_a_missing_deepspeed_has_its_install_line(small_config, monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with refused("torch/deepspeed-package-missing"):
        processes.join(small_config(parallel__zero=2))


def test_alone_is_alone(small_config):
    world = processes.join(small_config())
    assert (world.size, world.gather("x")) == (1, ["x"])
    assert processes.grid_of(small_config()) == processes.ProcessGrid()

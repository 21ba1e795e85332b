"""Each trainer is what the training loop drives: `coretrain.training.stack.Stack`, with the same names of arguments."""

from __future__ import annotations

import inspect
from typing import get_type_hints

import pytest

import jaxtrain.parallel.trainer
import jaxtrain.trainer
import torchtrain.parallel.pipeline_trainer
import torchtrain.parallel.trainer
import torchtrain.trainer
from coretrain.training.stack import Stack

TRAINERS = {
    "torch": torchtrain.trainer.Trainer,
    "torch, processes": torchtrain.parallel.trainer.ParallelTrainer,
    "torch, stages": torchtrain.parallel.pipeline_trainer.PipelineTrainer,
    "jax": jaxtrain.trainer.Trainer,
    "jax, mesh": jaxtrain.parallel.trainer.ParallelTrainer,
}


def members(protocol: type) -> dict[str, object]:
    """Public methods and properties of a protocol and of those that it extends."""
    found = {name: value for base in reversed(protocol.__mro__) for name, value in vars(base).items()}
    kinds = (property, type(lambda: None))
    return {name: value for name, value in found.items() if not name.startswith("_") and isinstance(value, kinds)}


def faults(trainer: type, protocol: type = Stack) -> list[str]:
    """What of a protocol's methods and properties a class lacks, or takes under other names."""
    found = []
    for name, wanted in members(protocol).items():
        own = inspect.getattr_static(trainer, name, None)
        if type(own) is not type(wanted):
            found.append(f"{name} is missing" if own is None else f"{name} is no {type(wanted).__name__}")
        elif not isinstance(wanted, property):
            signature, own_signature = (
                [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
                for method in (wanted, own)
            )
            if signature != own_signature:
                found.append(f"{name}: {own_signature} for {signature}")
    return found


def test_the_protocol_is_all_of_it():
    assert {"gradients", "apply", "evaluate", "token_logprobs", "save", "writes_in_place"} <= members(Stack).keys()
    assert get_type_hints(Stack).keys() >= {"name", "device_name"}


@pytest.mark.parametrize("trainer", TRAINERS.values(), ids=TRAINERS)
def test_a_trainer_is_a_stack(trainer):
    assert faults(trainer) == []


def test_zeros_trainer_is_a_stack():
    pytest.importorskip("deepspeed")
    from torchtrain.parallel.zero_trainer import ZeroTrainer

    assert faults(ZeroTrainer) == []


@pytest.mark.parametrize("name", ["torch", "torch, processes", "jax", "jax, mesh"])
def test_what_a_trainer_has_it_has_from_the_start(name, small_config):
    """Also alone, where nobody shares the run."""
    made = TRAINERS[name](small_config())
    for attribute, kind in get_type_hints(Stack).items():
        assert isinstance(getattr(made, attribute), kind), attribute
    assert isinstance(made.writes_in_place, bool)
    assert made.name == name.split(",")[0]
    assert all(isinstance(word, str) for line in made.describe() for word in line)


def test_a_class_that_is_no_stack_is_seen():
    class Other(torchtrain.trainer.Trainer):
        apply = None
        writes_in_place = True

        def gradients(self, rows, update, loss_scale):
            return 0.0, 0.0

        def evaluate(self, batch, scale=1.0):
            return 0.0

    assert [fault.split(":")[0] for fault in faults(Other)] == [
        "writes_in_place is no property",
        "gradients",
        "apply is missing",
        "evaluate",
    ]

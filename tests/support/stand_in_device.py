"""An update of torch's stack on a device, and among processes, that aren't there: a program that prints what it sends.

Usage: python -m tests.support.stand_in_device '[TASK, ...]', for `Task`s as JSON; prints what `traced` gives, a line
each. Tensors are fake (they know shapes, dtypes and devices alone), and so is the process group. The device is torch's
own stand-in for backends that it doesn't know: in a build without CUDA, fake CUDA tensors have no backward pass. An
operation that would give the host a number of the device raises. It is a program of its own since torch keeps the
stand-in until it ends.
"""

from __future__ import annotations

import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import torchtrain.parallel.trainer
import torchtrain.trainer
from coretrain.contract.choices import Choice
from coretrain.contract.parameters import initial_parameters
from coretrain.contract.update import Limits, Orders, Standing
from coretrain.data.batch import Batch, windows
from coretrain.planning.traffic import traffic
from coretrain.processes.layout import layout_of
from tests.support.configs import small_config
from torchtrain.parallel import processes
from torchtrain.parallel.trainer import ParallelTrainer
from torchtrain.trainer import Trainer

DEVICE = "stand_in:0"


@dataclass(frozen=True)
class Task:
    """A run of so many processes, seen from one of them."""

    fields: Mapping[str, Any]
    """What it has other than `small_config`."""
    processes: int = 1
    rank: int = 0
    compiled: bool = False
    """Whether its loss is compiled, as one graph."""


class NothingRead(TorchDispatchMode):
    """Raises where an operation gives the host what the device has. (`item` and its like fake tensors refuse.)"""

    @classmethod
    def is_infra_mode(cls) -> bool:
        """So that torch.compile doesn't take it for a part of the program."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "stand_in" in _devices((args, kwargs)) and "cpu" in _devices(result):
            raise RuntimeError(f"{func} gives the host what the device has")
        return result


def _devices(tree: Any) -> set[str]:
    return {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def traced(task: Task) -> dict[str, Any]:
    """What an update sends: `calls` (collective, axis, processes that share it, bytes of its tensor), `planned`, the
    planner's bytes by kind, how many `graphs` the loss was compiled to, which ways to read a result are `refused`."""
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(Path(folder), **task.fields)
    if task.processes > 1:
        dist.init_process_group("fake", rank=task.rank, world_size=task.processes, store=FakeStore())
    rows = windows(np.zeros((config.train.batch_size, config.model.context + 1), np.int32))
    tensors, graphs = dict(initial_parameters(config.model, 0)), list[Any]()

    def kept(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = (Trainer if task.processes == 1 else ParallelTrainer)(config, tensors)
        if task.compiled:
            trainer.loss = torch.compile(trainer.loss, fullgraph=True, dynamic=False, backend=kept)
        calls = _noted()
        with NothingRead():
            result = _update(trainer, rows)
            refused = [way for way in ("item", "cpu", "tolist", "__bool__") if _raises(getattr(result, way))]
    names = {}
    if task.processes > 1:
        axes = {"data": trainer.grid.data, "tensor": trainer.grid.tensor}
        names = {axis.group.group_name: name for name, axis in axes.items() if axis.size > 1}
        dist.destroy_process_group()
        processes._grid.cache_clear()
    return {
        "calls": [(kind, names.get(group, "all"), size, count) for kind, group, size, count in calls],
        "planned": traffic(config, layout_of(config, task.processes)),
        "graphs": len(graphs),
        "refused": refused,
    }


def _raises(read: Callable[[], Any]) -> bool:
    try:
        read()
    except (RuntimeError, DataDependentOutputException):
        return True
    return False


def _update(trainer: Trainer, rows: Batch) -> torch.Tensor:
    """From a batch in the host's memory to the optimizer's step, without the host's verdict between; what can be read
    then."""
    orders = Orders(1e-3, Limits(math.inf, math.inf), 1.0, Standing(0, 0, False), alone=True)
    trainer.update(rows, 0, orders, lambda: None)  # whose verdict is the device's
    return trainer.standing.applied


def _noted() -> list[tuple[str, str, int, int]]:
    """A list to which each collective from now on is added."""
    calls: list[tuple[str, str, int, int]] = []

    def noting(name: str, call: Callable[..., Any], tensor_at: int) -> Callable[..., Any]:
        @functools.wraps(call)
        def noted(*given: Any, **named: Any) -> Any:
            group, tensor = named.get("group"), given[tensor_at]
            size = tensor.numel() * tensor.element_size()
            calls.append((name, "" if group is None else group.group_name, dist.get_world_size(group), size))
            return call(*given, **named)

        return noted

    for name, tensor_at in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
        setattr(dist, name, noting(name, getattr(dist, name), tensor_at))
    return calls


def _faked(make: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """`build_model`, whose model then has fake tensors on the stand-in."""

    @functools.wraps(make)
    def made(*given: Any) -> torch.nn.Module:
        with unset_fake_temporarily():
            model = make(*(torch.device("cpu") if isinstance(x, torch.device) else x for x in given))
        for module in model.modules():
            for name, tensor in module._parameters.items():
                if tensor is not None:
                    module._parameters[name] = torch.nn.Parameter(_form_of(tensor), tensor.requires_grad)
            for name, tensor in module._buffers.items():
                module._buffers[name] = None if tensor is None else _form_of(tensor)
        return model

    return made


def _form_of(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("stand_in")
    torchtrain.trainer.choose_device = lambda config: Choice(DEVICE, "a stand-in")
    Trainer.in_step, adamw = False, torch.optim.AdamW  # as on CUDA, like its fused kernel
    torch.optim.AdamW = lambda groups, **options: adamw(groups, **options | {"fused": True})
    for owner in (torchtrain.trainer, torchtrain.parallel.trainer):
        owner.build_model = _faked(owner.build_model)
    for given in json.loads(sys.argv[1]):
        print(json.dumps(traced(Task(**given))), flush=True)

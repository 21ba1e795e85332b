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
from torch.distributed.pipelining.stage import InferenceMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import torchtrain.parallel.fsdp
import torchtrain.parallel.pipeline_trainer
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
from torchtrain.parallel.choose import make_trainer
from torchtrain.parallel.fsdp import FullyShard
from torchtrain.trainer import Trainer

DEVICE = "stand_in:0"
COMPILE = torch.compile
NAMES = ("all_reduce", "all_gather", "broadcast", "all_gather_single", "reduce_scatter_single")
CALLS = {name: getattr(dist, name) for name in NAMES}


@dataclass(frozen=True)
class Task:
    """A run of so many processes, seen from one of them."""

    fields: Mapping[str, Any]
    """What it has other than `small_config`."""
    processes: int = 1
    rank: int = 0


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
        torch.compile = functools.partial(COMPILE, fullgraph=True, backend=kept)
        trainer = make_trainer(config, tensors)
        calls = _noted()
        with NothingRead():
            result = _update(trainer, rows)
            refused = [way for way in ("item", "cpu", "tolist", "__bool__") if _raises(getattr(result, way))]
    names = {}
    if task.processes > 1:
        grid = processes.grid_of(config)
        axes = {"data": grid.data, "tensor": grid.tensor, "pipeline": grid.pipeline}
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

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def noted(*given: Any, **named: Any) -> Any:
            group, tensors = named.get("group"), tree_leaves((given, named))
            size = max(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
            calls.append((name, "" if group is None else group.group_name, dist.get_world_size(group), size))
            return call(*given, **named)

        return noted

    for name, call in CALLS.items():
        setattr(dist, name, noting(name, call))

    def batch_p2p(ops: list[dist.P2POp], desc: str | None = None) -> list[dist.Work]:
        """Notes what stages pass on; the process group knows no stand-in."""
        for op in ops:
            noting(op.op.__name__, lambda *given, **named: None)(op.tensor, group=op.group)
        return []

    torch.distributed.pipelining.schedules._batch_p2p = batch_p2p
    return calls


def _unfaked(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, which then makes real tensors, and reads them."""

    def made(*given: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return make(*given, **named)

    return made


def _agreed(schedule: Any, stages: list[Any], has_backward: bool, p2p_done: bool) -> None:
    """For `Schedule1F1B._warmup_p2p`: stages vote, once, by a tensor whose value they read.

    All of ours have said what they send, and so vote alike.
    """
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


class Module(_DummyBackendModule):
    """What torch asks a device's module for: FSDP2 for streams and events, in which nothing is done; recomputation for
    the dtypes of autocast, which is off; a pipeline's schedule for random numbers, which nothing draws."""

    Stream, Event = torch.cpu.Stream, torch.cpu.Event
    stream, current_stream = staticmethod(torch.cpu.stream), staticmethod(torch.cpu.current_stream)
    get_rng_state, set_rng_state = staticmethod(lambda device: None), staticmethod(lambda *given: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


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
    _setup_privateuseone_for_python_backend("stand_in", Module())
    torchtrain.trainer.choose_device = lambda config: Choice(DEVICE, "a stand-in")
    Trainer.in_step = FullyShard.in_step = False
    adamw = torch.optim.AdamW  # as on CUDA, like its fused kernel
    torch.optim.AdamW = lambda groups, **options: adamw(groups, **options | {"fused": True})
    for owner in (torchtrain.trainer, torchtrain.parallel.trainer):
        owner.build_model = _faked(owner.build_model)
    stages = torchtrain.parallel.pipeline_trainer
    stages.Stage, stages.materialize = _unfaked(stages.Stage), _faked(stages.materialize)
    stages.PipelineTrainer.in_step = False
    torchtrain.parallel.pipeline.Schedule1F1B._warmup_p2p = _agreed
    fsdp = torchtrain.parallel.fsdp
    fsdp.without_numbers = _faked(fsdp.without_numbers)
    fsdp.DeviceMesh.from_group = _unfaked(fsdp.DeviceMesh.from_group)
    fsdp.LossModule.to_empty = lambda module, device: module  # it is there already
    for given in json.loads(sys.argv[1]):
        print(json.dumps(traced(Task(**given))), flush=True)

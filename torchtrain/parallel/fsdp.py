"""FSDP2 (torch's `fully_shard`) around the contract's update: ZeRO's stages 1, 2 and 3 without DeepSpeed.

Each parameter is cut along its first dimension over the data axis. A block's are gathered in one collective and its
gradients summed to their owners in one more, and so is what lies outside of the blocks. Stage 3 frees a block's weights
after its forward pass and gathers them again; 1 and 2 keep them from the first forward to the last backward pass of an
update, and 1 sums gradients once an update. All of it is in the master dtype; the layers cast weights at use as they do
on one device. Schedule, clip, norm, verdict and the optimizer, over this process's rows, are the contract's own.

This file has no twin: XLA's sharded arrays do this (jaxtrain/parallel/sharding.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from coretrain.checkpoint.fragments import Fragment
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import Parameter, check_names, check_shape, parameter_table
from coretrain.contract.rotary import rotary_tables
from coretrain.data.batch import Batch
from torchtrain.layers import Dropout, master_dtype
from torchtrain.model import GPT, local_shard
from torchtrain.objective import OBJECTIVES
from torchtrain.optimizer import Optimizer, fragment
from torchtrain.parallel.axes import ALONE, Axis
from torchtrain.parallel.processes import ProcessGrid
from torchtrain.parallel.zero import Found, LossModule


class FullyShard:
    """A model and its update rule under FSDP2, with the methods of `zero.Zero`."""

    def __init__(
        self,
        config: RunConfig,
        kernel: str,
        device: torch.device,
        grid: ProcessGrid,
        tensors: Mapping[str, np.ndarray],
        compiled: bool,
    ) -> None:
        self.config, self.device, self.grid, self.stage = config, device, grid, config.parallel.zero
        self.model = without_numbers(config, kernel, grid.tensor)
        self.model.sparse = False  # FSDP2's sums are dense
        self.module = LossModule(self.model, functools.partial(OBJECTIVES[config.train.objective], self.model, config))
        self._cut(compiled)
        self.module.to_empty(device=device)
        if config.model.position == "rope":
            for name, table in zip(("cos", "sin"), rotary_tables(config.model, config.model.context), strict=True):
                getattr(self.model, name).copy_(torch.from_numpy(table).to(getattr(self.model, name).dtype))
        self.shards = {name: cast("DTensor", p) for name, p in self.model.named_parameters()}
        self.optimizer = RowsOptimizer(config, self.model, self.shards, grid.data)
        self.fill(tensors)

    def _cut(self, compiled: bool) -> None:
        data, kind = self.grid.data, self.device.type
        mesh = init_device_mesh(kind, (1,)) if data.group is None else DeviceMesh.from_group(data.group, kind)
        blocks = list(self.model.blocks)
        for number, block in enumerate(blocks, 1):
            if compiled:  # block by block, since weights are gathered between them; dropout makes a program of each
                options: dict[str, Any] = {"dynamic": False, "recompile_limit": 8 + len(blocks)}
                block.forward = torch.compile(block.forward, **options)
            # the last one's backward pass comes right after its forward pass
            fully_shard(block, mesh=mesh, reshard_after_forward=self.stage == 3 and number < len(blocks))
            register_fsdp_forward_method(block, "decode")
        fully_shard(self.module, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(self.module, "whole")
        for unit in self._units():
            unit.set_gradient_divide_factor(1.0)  # the loss is a part of a sum
            unit.set_force_sum_reduction_for_comms(True)

    def _units(self) -> Iterator[FSDPModule]:
        return (module for module in self.module.modules() if isinstance(module, FSDPModule))

    def describe(self) -> str:
        """What is sharded, and in which dtype, in words."""
        what = {1: "moments", 2: "moments and gradients", 3: "moments, gradients and weights"}[self.stage]
        dtype = str(master_dtype(self.config)).removeprefix("torch.")
        return (
            f"FSDP2 of torch {torch.__version__}, stage {self.stage}: {what} shared by {self.grid.data.size}, all in "
            f"{dtype} (the weights are cast where they are used)"
        )

    @property
    def in_step(self) -> bool:
        """Whether an update is done when it is begun: on CUDA nothing here waits for the device."""
        return self.device.type != "cuda"

    def loss(self, batch: Batch, scale: Tensor, dropout: Dropout | None) -> Tensor:
        """The loss of this process's rows of a micro-batch."""
        loss: Tensor = self.module(batch, scale, dropout)
        return loss

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of `loss` to those of the update; after the `last` one their sums are ready."""
        unit = cast("FSDPModule", self.module)
        unit.set_requires_gradient_sync(last or self.stage > 1)
        unit.set_reshard_after_backward(last or self.stage == 3)
        loss.backward()

    def gradients(self) -> dict[str, Tensor]:
        """This process's rows of the summed gradients, by parameter."""
        found = {}
        for name, shard in self.shards.items():
            assert shard.grad is not None, "asked for after the last backward pass"
            found[name] = self.optimizer.parameters[name].grad = cast("DTensor", shard.grad).to_local()
        return found

    def step(self, lr: float, factor: float | Tensor, fine: Tensor | None = None) -> None:
        """As `Optimizer.step`, with the summed gradients."""
        for unit in self._units():
            unit.reshard()  # what an evaluation has gathered is old now
        self.optimizer.step(lr, factor, fine)

    def drop(self) -> None:
        """Forget gradients that no update has taken."""
        for name, shard in self.shards.items():
            shard.grad = self.optimizer.parameters[name].grad = None

    def fragments(self, grid: ProcessGrid) -> Iterator[Fragment]:
        """What this process writes of the state: its rows, in the host's memory."""
        return self.optimizer.fragments()

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take the weights: each process its rows of one tensor after the other."""
        for unit in self._units():
            unit.reshard()
        check_names(self.config.model, tensors, "the parameters")
        for row in parameter_table(self.config.model):
            value = tensors[row.name]
            check_shape(row, value, "the parameters")
            self.optimizer.parameters[row.name].copy_(self.optimizer.own(row, value))

    def load(self, moments: Mapping[str, Mapping[str, np.ndarray]], applied: int) -> None:
        """Take moments as a checkpoint has them, after `applied` updates."""
        self.optimizer.load(moments, applied)

    def whole(self, call: Callable[[], Found]) -> Found:
        """What `call` gives, while embeddings and head are whole; a block's weights are gathered as it is called."""
        self.module.eval()
        found = self.module.whole(call)
        self.module.train()
        return found


def without_numbers(config: RunConfig, kernel: str, tensor: Axis) -> GPT:
    """A GPT in its master dtype that takes no memory."""
    with torch.device("meta"):
        return GPT(config, kernel, tensor).to(master_dtype(config))


class RowsOptimizer(Optimizer):
    """The update rule over this process's rows of each parameter; the last processes may have fewer, or none."""

    def __init__(self, config: RunConfig, model: GPT, shards: Mapping[str, DTensor], data: Axis) -> None:
        rows = {name: nn.Parameter(cast("DTensor", shard.detach()).to_local()) for name, shard in shards.items()}
        super().__init__(config, model, rows)
        self.starts = {name: data.index * -(-len(shard) // data.size) for name, shard in shards.items()}

    def own(self, row: Parameter, value: np.ndarray) -> Tensor:
        """This process's rows of a whole canonical tensor."""
        start, mine = self.starts[row.name], self.parameters[row.name]
        part = local_shard(self.config, row, value, self.tensor)[start : start + len(mine)]
        return torch.from_numpy(part).to(mine, copy=True)  # which doesn't hold the whole tensor

    def fragments(self, copies: Axis = ALONE) -> Iterator[Fragment]:
        """What this process writes of the state, in the host's memory."""
        for group, tree in ({"parameters": self.parameters} | self._moments()).items():
            for name, value in tree.items():
                start = self.starts[name] * value.shape[1:].numel()
                yield from fragment(self.config, self.tensor, group, name, value.detach().reshape(-1), start)

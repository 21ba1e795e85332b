"""DeepSpeed's ZeRO around the contract's update: shards of moments (1), gradients (2), weights (3) over the data axis.

DeepSpeed shards, gathers and offloads; what the contract owns stays outside: schedule, clip factor, loss scale, the
norm before the update and the decision to skip it. Its own clipping, overflow checks and schedules are off. It runs in
float32, also where the model computes in bfloat16 or float16: a shard is a shard of the master weights, which the
layers cast at use as they do on one device, so that the numbers are one device's. This file has no twin: XLA's sharded
arrays do this (jaxtrain/parallel/sharding.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from coretrain.checkpoint.fragments import Fragment
from coretrain.config.run import RunConfig
from coretrain.contract.optimizer import decay_rate
from coretrain.contract.parameters import check_names, check_shape, parameter_table
from coretrain.data.batch import Batch
from coretrain.planning.memory import BUCKET
from torchtrain.layers import Dropout
from torchtrain.model import GPT, build_model, local_shard
from torchtrain.optimizer import adamw, fragment, moment
from torchtrain.parallel.processes import ProcessGrid
from torchtrain.step import MicroLoss

Found = TypeVar("Found")
MOMENTS = {"first_moment": "exp_avg", "second_moment": "exp_avg_sq"}


@dataclass(frozen=True)
class ShardRange:
    """Numbers [start, stop) of a parameter's local tensor, which lie at [at, at + stop - start) of a group's shard."""

    name: str
    start: int
    stop: int
    at: int


class LossModule(nn.Module):
    """The loss of a micro-batch as one module, which is what an engine wraps."""

    def __init__(self, model: GPT, compute: MicroLoss) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, batch: Batch, scale: Tensor, dropout: Dropout | None) -> Tensor:
        return self.compute(batch, scale, dropout)

    def whole(self, call: Callable[[], Found]) -> Found:
        """What `call` gives."""
        return call()


@dataclass(frozen=True)
class _Units:
    """The axes, under the names that DeepSpeed asks a Megatron "mpu" for."""

    grid: ProcessGrid

    def __getattr__(self, name: str) -> Any:
        for prefix, axis in (
            ("get_data_parallel_", self.grid.data),
            ("get_model_parallel_", self.grid.tensor),
            ("get_tensor_model_parallel_", self.grid.tensor),
        ):
            facts = {"rank": axis.index, "world_size": axis.size, "group": axis.group}
            if name.startswith(prefix) and name.removeprefix(prefix) in facts:
                return lambda: facts[name.removeprefix(prefix)]
        raise AttributeError(name)


class Zero:
    """A model and its update rule under DeepSpeed, with the methods of `optimizer.Optimizer` and the backward pass."""

    def __init__(
        self,
        config: RunConfig,
        kernel: str,
        device: torch.device,
        grid: ProcessGrid,
        tensors: Mapping[str, np.ndarray],
        loss_of: Callable[[GPT], MicroLoss],
    ) -> None:
        self.config, self.grid, self.stage = config, grid, config.parallel.zero
        self.deepspeed = deepspeed = _deepspeed(device)
        settings = _settings(config, device)
        units = _Units(grid) if grid.tensor.size > 1 else None
        if self.stage == 3:
            # not dtype=torch.float32: 0.19.8 makes bfloat16 of it on a CPU; from the settings it takes float32
            shards = grid.data.group if units else None  # none: all processes
            with deepspeed.zero.Init(config_dict_or_path=settings, data_parallel_group=shards, mpu=units):
                self.model = GPT(config, kernel, grid.tensor)
                module = LossModule(self.model, loss_of(self.model))
            for user in (self.model, module):  # both use weights that belong to modules inside them
                for weight in _used_from_above(self.model):
                    deepspeed.zero.register_external_parameter(user, weight)
        else:
            self.model = build_model(config, kernel, tensors, device, grid.tensor)
            module = LossModule(self.model, loss_of(self.model))
        self.model.sparse = False  # DeepSpeed's buckets are dense
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.engine, self.inner, *_ = deepspeed.initialize(
            model=module, optimizer=adamw(config, self._groups()), config=settings, mpu=units
        )
        self.pieces = _pieces(self.inner, self.stage, names, grid)
        if self.stage == 3:
            self.fill(tensors)

    def _groups(self) -> list[dict[str, Any]]:
        parameters, decay = dict(self.model.named_parameters()), decay_rate(self.config.optimizer)
        table = parameter_table(self.config.model)
        groups = [
            {"params": [parameters[row.name] for row in table if row.decay is decays], "weight_decay": rate}
            for decays, rate in ((True, decay), (False, 0.0))
        ]
        return [group for group in groups if group["params"]]

    def describe(self) -> str:
        """What is sharded, in which dtype, and where it is kept, in words."""
        what = {1: "moments", 2: "moments and gradients", 3: "moments, gradients and weights"}[self.stage]
        kept = {"none": "", "optimizer": "; optimizer in host memory", "all": "; optimizer and weights in host memory"}
        return (
            f"DeepSpeed {self.deepspeed.__version__} stage {self.stage}: {what} shared by {self.grid.data.size}, all "
            f"in float32 (the weights are cast where they are used){kept[self.config.parallel.offload]}"
        )

    def loss(self, batch: Batch, scale: Tensor, dropout: Dropout | None) -> Tensor:
        """The loss of this process's rows of a micro-batch."""
        self.engine.train(self.model.training)
        return self.engine(batch, scale, dropout)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of `loss` to those of the update; after the `last` one their sums are ready."""
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over the processes; the loss is a part of a sum
        self.engine.backward(loss * self.grid.data.size, scale_wrt_gas=False)

    def gradients(self) -> dict[str, Tensor]:
        """This process's shard of the summed gradients, by parameter."""
        return {
            piece.name: part for group, pieces in enumerate(self.pieces) for piece, part in self._shard(group, pieces)
        }

    def _shard(self, group: int, pieces: list[ShardRange]) -> Iterator[tuple[ShardRange, Tensor]]:
        if self.config.parallel.offload != "none":
            flat = self._masters()[group].grad
            assert flat is not None, "DeepSpeed offloads the gradients to where the optimizer steps"
            yield from ((piece, flat[piece.at : piece.at + piece.stop - piece.start]) for piece in pieces)
            return
        parts = iter(self.inner.averaged_gradients[group])
        at = 0
        for piece in pieces:
            part = next(parts)
            while at < piece.at:  # padding, or a parameter of which nothing is here
                at, part = at + part.numel(), next(parts)
            assert at == piece.at
            yield piece, part.view(-1)[: piece.stop - piece.start]
            at += part.numel()

    @property
    def in_step(self) -> bool:
        """Always: DeepSpeed's step waits for the device itself."""
        return True

    def step(self, lr: float, factor: float) -> None:
        """One update with the summed gradients, first multiplied by `factor` (clip and loss scale together)."""
        if factor != 1.0:
            for part in self.gradients().values():
                part.mul_(factor)
        for group in self.inner.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    def drop(self) -> None:
        """Forget gradients that no update has taken."""
        inner = self.inner
        inner.zero_grad(set_to_none=True)
        if self.stage == 3:
            inner._pre_step()
            inner.averaged_gradients = {}
        else:
            inner.micro_step_id = -1
            inner.averaged_gradients, inner.all_grad_tensors = {}, {}
            inner.clear_backward_seen_flag()
        if self.config.parallel.offload != "none":
            inner.reset_cpu_buffers()

    def _masters(self) -> list[Tensor]:
        return (
            self.inner.fp32_partitioned_groups_flat if self.stage == 3 else self.inner.single_partition_of_fp32_groups
        )

    def fragments(self, grid: ProcessGrid) -> Iterator[Fragment]:
        """What this process writes of the state: its shards, in the host's memory."""
        for master, pieces in zip(self._masters(), self.pieces, strict=True):
            state = self.inner.optimizer.state.get(master, {})
            flats = {"parameters": master} | {group: moment(state, key, master) for group, key in MOMENTS.items()}
            for group, flat in flats.items():
                for piece in pieces:
                    values = flat.detach()[piece.at : piece.at + piece.stop - piece.start]
                    yield from fragment(self.config, grid.tensor, group, piece.name, values, piece.start)

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take the weights: each process its shard of one tensor after the other."""
        self._scatter(tensors, "the parameters", self._masters())
        if self.stage < 3:
            self.inner.update_lp_params()
            return
        self.inner._partition_all_parameters()
        for group in range(len(self.pieces)):
            self.inner._reassign_or_swap_out_partitioned_parameters(group)
        if kept := self.inner.persistent_parameters:
            kept[0].all_gather(kept)

    @torch.no_grad()
    def load(self, moments: Mapping[str, Mapping[str, np.ndarray]], applied: int) -> None:
        """Take moments as a checkpoint has them, after `applied` updates."""
        masters, states = self._masters(), self.inner.optimizer.state
        for group, key in MOMENTS.items():  # not a second set, after a rollback
            flats = [states[m][key].zero_() if key in states.get(m, {}) else torch.zeros_like(m) for m in masters]
            self._scatter(moments[group], group, flats)
            for master, flat in zip(masters, flats, strict=True):
                states[master] = {**states.get(master, {}), key: flat, "step": torch.tensor(float(applied)).to(master)}

    def _scatter(self, tensors: Mapping[str, np.ndarray], where: str, flats: list[Tensor]) -> None:
        check_names(self.config.model, tensors, where)
        places: dict[str, list[tuple[Tensor, ShardRange]]] = {}
        for flat, pieces in zip(flats, self.pieces, strict=True):
            for piece in pieces:
                places.setdefault(piece.name, []).append((flat, piece))
        for row in parameter_table(self.config.model):
            for flat, piece in places.get(row.name, ()):
                value = tensors[row.name]
                check_shape(row, value, where)
                values = torch.from_numpy(local_shard(self.config, row, value, self.grid.tensor).reshape(-1))
                flat[piece.at : piece.at + piece.stop - piece.start].copy_(values[piece.start : piece.stop])

    def whole(self, call: Callable[[], Found]) -> Found:
        """What `call` gives, while embeddings and head are whole; layers gather theirs as they are called."""
        self.engine.eval()
        gathered = list(_used_from_above(self.model)) if self.stage == 3 else []
        with self.deepspeed.zero.GatheredParameters(gathered) if gathered else contextlib.nullcontext():
            found = call()
        self.engine.train()
        return found


def _used_from_above(model: GPT) -> Iterator[nn.Parameter]:
    yield from (p for p in (model.embed.token, model.embed.position) if p is not None)
    if model.head is not None:
        yield model.head.weight
    if model.score is not None:
        yield model.score.weight


def _deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, on this device, with nothing to build and no MPI to look for."""
    os.environ.setdefault("LOCAL_RANK", "0")  # the engine reads it; a process of its own has none
    logging.disable(logging.WARNING)
    import deepspeed
    from deepspeed.accelerator import set_accelerator

    logging.disable(logging.NOTSET)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # torch 2.13 renames collectives that DeepSpeed 0.19 still calls by their old names
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if device.type == "cpu":
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
        from deepspeed.ops import __compatible_ops__

        set_accelerator(CPU_Accelerator())
        __compatible_ops__["deepspeed_shm_comm"] = False  # gloo does it without a minute of compiling
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _settings(config: RunConfig, device: torch.device) -> dict[str, Any]:
    p = config.parallel
    host = {"device": "cpu", "pin_memory": device.type == "cuda"}
    zero: dict[str, Any] = {
        "stage": p.zero,
        "overlap_comm": device.type == "cuda",
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if p.zero == 3:
        zero["stage3_prefetch_bucket_size"] = BUCKET
        zero["memory_efficient_linear"] = False  # it replaces torch's own function, for all code and for good
    if p.offload != "none":
        zero["offload_optimizer"] = host
    if p.offload == "all":
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only counts with it; the rows are ours
        "gradient_accumulation_steps": config.train.accumulation,
        "gradient_clipping": 0.0,  # left out it would be 1
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def _pieces(inner: Any, stage: int, names: Mapping[int, str], grid: ProcessGrid) -> list[list[ShardRange]]:
    """What this process's shard of each parameter group is made of."""
    rank, found = grid.data.index, []
    groups = inner.fp16_groups if stage == 3 else inner.bit16_groups
    for number, parameters in enumerate(groups):
        pieces, at = [], 0
        for parameter in parameters:
            name = names[id(parameter)]
            if stage == 3:  # each parameter is cut by itself, padded to equal shards
                size = parameter.partition_numel()
                start, stop = rank * size, min((rank + 1) * size, parameter.ds_numel)
                if start < stop:
                    pieces.append(ShardRange(name, start, stop, at))
                at += size
            else:  # the group is cut, as one long row of numbers
                size = inner.partition_size[number]
                first = rank * size - at
                start, stop = max(0, first), min(parameter.numel(), first + size)
                if start < stop:
                    pieces.append(ShardRange(name, start, stop, at + start - rank * size))
                at += parameter.numel()
        found.append(pieces)
    return found

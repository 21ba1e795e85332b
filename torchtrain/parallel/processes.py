"""The processes of a run in PyTorch, and how they share its work (twin: jaxtrain/parallel/processes.py).

One process for each device. Ranks run with the tensor axis fastest, then pipeline, then data, so that the processes
that talk most are neighbours on one machine: rank = (data * pipeline_size + pipeline) * tensor_size + tensor.

`ProcessGrid` and `grid_of` have no twin: they are the groups of processes, and the sums over them are what in JAX the
compiler puts in.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from coretrain.base.errors import UserError
from coretrain.base.numbers import told_number
from coretrain.config.run import RunConfig
from coretrain.planning.memory import FLAT
from coretrain.processes.launch import launched, launched_as
from coretrain.processes.layout import Layout, layout_of
from coretrain.processes.rendezvous import meet
from coretrain.processes.supported import check_combination
from coretrain.processes.world import PeerError, World
from torchtrain.parallel.axes import ALONE, Axis


def join(config: RunConfig) -> World:
    """The world of this process: those that torchrun, deepspeed or `--spawn` started with it, or itself alone.

    Raises `UserError` where the axes of `parallel` don't fit the processes, torch has no such axis, or the others don't
    come: within `parallel.timeout` seconds but under torchrun, which waits for them itself before it starts any.
    """
    _refuse(config)
    rank, size = launched_as()
    check_combination(config, "torch", layout_of(config, size))
    if not launched() and config.parallel.zero == 0:
        return World()
    cuda = config.execution.device in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(told_number("LOCAL_RANK", 0))
    timeout = _timeout(config)
    store = None if launched() else dist.HashStore()  # type: ignore[attr-defined]  # torch has no __all__ to list it in
    alone: dict[str, Any] = {} if store is None else {"store": store, "rank": 0, "world_size": 1}
    told = os.environ
    if {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= told.keys() and "TORCHELASTIC_RUN_ID" not in told:
        meet(f"{told['MASTER_ADDR']}:{told_number('MASTER_PORT', most=2**16 - 1)}", size, rank, config.parallel.timeout)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, **alone)
    except (RuntimeError, ValueError) as error:  # of the rendezvous: not met, an address missing or taken
        raise UserError(
            "torch/process-not-joined",
            f"this process could not join the others ({str(error).splitlines()[0]}): start all of them alike, by "
            "--spawn, torchrun or deepspeed, or by hand with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
        ) from None
    # the group's threads left running at exit now and then abort the process, whatever code it was to end with
    atexit.register(_part)
    return Processes(timeout)


def _timeout(config: RunConfig) -> datetime.timedelta:
    # coretrain.processes.heartbeat names who hangs before that
    return datetime.timedelta(seconds=2 * config.parallel.timeout)


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _refuse(config: RunConfig) -> None:
    check_combination(config, "torch")
    engine = config.parallel.zero_engine
    if config.parallel.zero and engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "torch/deepspeed-package-missing",
            f"parallel.zero = {config.parallel.zero} needs DeepSpeed: pip install 'twintrain[deepspeed]', "
            "or set parallel.zero_engine = fsdp2, or parallel.zero = 0",
        )


class Processes(World):
    """The world that `torch.distributed` joined; words go over gloo, also where tensors go over NCCL."""

    def __init__(self, timeout: datetime.timedelta) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._words = dist.new_group(backend="gloo", timeout=timeout) if dist.get_backend() != "gloo" else None

    def gather(self, text: str) -> list[str]:
        """Each process's text, by rank, on all of them. Raises `PeerError` where one of them is gone."""
        words: list[str] = [""] * self.size
        try:
            dist.all_gather_object(words, text, group=self._words)
        except RuntimeError as error:
            raise PeerError(
                "torch/process-gone",
                "another process of the run is gone, or silent for too long: see what it said, and go on with --resume",
            ) from error
        return words

    def shutdown(self) -> None:
        """Part from the others, where all are done: NCCL's communicators want to be ended."""
        _part()


@dataclass(frozen=True)
class ProcessGrid:
    """Where this process stands in the layout."""

    layout: Layout = field(default_factory=Layout)
    data: Axis = ALONE
    pipeline: Axis = ALONE
    tensor: Axis = ALONE
    joined: bool = False
    """Whether `torch.distributed` runs."""

    rank: int = 0
    ends: Any = None
    """The process group of the first and the last stage, for a tied head."""

    @property
    def size(self) -> int:
        """Processes in all."""
        return self.layout.devices

    def describe(self) -> str:
        """The processes, their layout and what they talk over, in words."""
        return f"{self.size} over {dist.get_backend()}, {self.layout} (tensor fastest, then pipeline, then data)"

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Replace gradients by their sums over the data axis, `FLAT` numbers at a time."""
        if self.data.size == 1:
            return
        # Overlapped with nothing: the sum comes once an update, after all micro-batches. ZeRO overlaps, where it pays.
        for bucket in _buckets(gradients, FLAT):
            flat = torch.cat([g.reshape(-1) for g in bucket])
            self.data.sum(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def table(self, *values: Tensor) -> Tensor:
        """Every process's scalars, the same bits on all: [data, pipeline, tensor, values] in float64 (MPS: float32)."""
        wide = torch.float32 if values[0].device.type == "mps" else torch.float64
        mine = torch.stack([value.to(values[0].device, wide) for value in values])
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(rows, mine)
        else:
            rows = [mine]
        return torch.stack(rows).view(self.data.size, self.pipeline.size, self.tensor.size, len(values))


def _buckets(tensors: Iterable[Tensor], limit: int) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > limit:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def grid_of(config: RunConfig) -> ProcessGrid:
    """This process in the layout; alone where `join` was not called. All processes call it in step."""
    if not dist.is_initialized():
        return ProcessGrid()
    return _grid(layout_of(config, dist.get_world_size()), _timeout(config))


@functools.cache
def _grid(layout: Layout, timeout: datetime.timedelta) -> ProcessGrid:
    rank = dist.get_rank()
    T, P, D = layout.tensor, layout.pipeline, layout.data
    t, p, d = rank % T, rank // T % P, rank // (T * P)

    def axis(size: int, index: int, ranks_of: Callable[[int, int], list[int]], others: tuple[int, int]) -> Axis:
        if size == 1:
            return ALONE
        mine = None
        for a in range(others[0]):
            for b in range(others[1]):  # every process makes every group, in the same order
                ranks = ranks_of(a, b)
                group = dist.new_group(ranks, timeout)
                mine = group if rank in ranks else mine
        return Axis(size, index, mine)

    ends = None
    for a in range(D):
        for b in range(T):
            ranks = [(a * P + k) * T + b for k in (0, P - 1)]
            group = dist.new_group(ranks, timeout) if P > 1 else None
            ends = group if rank in ranks else ends
    return ProcessGrid(
        layout,
        axis(D, d, lambda a, b: [(k * P + a) * T + b for k in range(D)], (P, T)),
        axis(P, p, lambda a, b: [(a * P + k) * T + b for k in range(P)], (D, T)),
        axis(T, t, lambda a, b: [(a * P + b) * T + k for k in range(T)], (D, P)),
        True,
        rank,
        ends,
    )

"""Mistakes of sharing a run between torch processes, planted in one of them or all."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed.fsdp
import torch.nn.functional as F

import torchtrain.checkpoint
import torchtrain.layers
import torchtrain.loss
import torchtrain.model
import torchtrain.parallel.pipeline
import torchtrain.parallel.pipeline_trainer
import torchtrain.parallel.trainer
import torchtrain.step
from coretrain.processes.layout import rows_of
from coretrain.processes.world import World
from torchtrain.parallel.axes import Axis, reduce_from_tensor_region
from torchtrain.parallel.processes import ProcessGrid, grid_of


@contextlib.contextmanager
def planted(bug: str, world: World) -> Iterator[None]:
    """Within, a bug of `BUGS` is in the program of this process."""
    with pytest.MonkeyPatch.context() as patch:
        if bug:
            BUGS[bug](patch, world)
        yield


def _mean(patch: pytest.MonkeyPatch, world: World) -> None:
    """Gradients that are averaged, though the loss is divided already."""
    plain = ProcessGrid.sum_gradients

    def sum_gradients(self, gradients):
        plain(self, gradients)
        for gradient in gradients:
            gradient.div_(self.data.size)

    patch.setattr(ProcessGrid, "sum_gradients", sum_gradients)


def _mean_by_deepspeed(patch: pytest.MonkeyPatch, world: World) -> None:
    """DeepSpeed's average, left as it is."""
    import torchtrain.parallel.zero

    def backward(self, loss, last):
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    patch.setattr(torchtrain.parallel.zero.Zero, "backward", backward)


def _mean_by_fsdp2(patch: pytest.MonkeyPatch, world: World) -> None:
    """FSDP2's average, left as it is."""
    patch.setattr(torch.distributed.fsdp.FSDPModule, "set_gradient_divide_factor", lambda self, factor: None)


def _swapped_rows(patch: pytest.MonkeyPatch, world: World) -> None:
    """A process takes its neighbour's rows of what is loaded."""
    from torchtrain.parallel.fsdp import RowsOptimizer

    def own(self, row, value):
        start, mine = self.starts[row.name], self.parameters[row.name]
        part = torchtrain.model.local_shard(self.config, row, value, self.tensor)
        return torch.from_numpy(np.roll(part, len(mine), 0)[start : start + len(mine)]).to(mine)

    patch.setattr(RowsOptimizer, "own", own)


def _old_weights(patch: pytest.MonkeyPatch, world: World) -> None:
    """What was gathered for an update is still used in the next one."""
    from torchtrain.parallel.fsdp import FullyShard

    unit = torch.distributed.fsdp.FSDPModule
    plain = unit.set_reshard_after_backward
    patch.setattr(unit, "set_reshard_after_backward", lambda self, last: plain(self, False))
    patch.setattr(FullyShard, "step", lambda self, *given: self.optimizer.step(*given))


def _norm_of_shard(patch: pytest.MonkeyPatch, world: World) -> None:
    """Each process clips by its own shard's norm."""
    plain = ProcessGrid.table

    def table(self, *values):
        whole = plain(self, *values)
        if len(values) == 3:
            whole[..., 1:] = 0
            whole[0, 0, 0, 1:] = torch.stack([value.to(whole.dtype) for value in values[1:]])
        return whole

    patch.setattr(ProcessGrid, "table", table)


def _loss_of_rank(patch: pytest.MonkeyPatch, world: World) -> None:
    """Each process reports its own part of the loss."""
    plain = ProcessGrid.table

    def table(self, *values):
        whole = plain(self, *values)
        if len(values) == 3:
            whole[..., 0] = values[0] / self.data.size
        return whole

    patch.setattr(ProcessGrid, "table", table)


def _same_rows(patch: pytest.MonkeyPatch, world: World) -> None:
    """All processes take the first one's rows."""
    for module in (torchtrain.parallel.trainer, torchtrain.parallel.pipeline_trainer):
        patch.setattr(module, "rows_of", lambda config, layout, place: rows_of(config, layout, 0))


def _local_masks(patch: pytest.MonkeyPatch, world: World) -> None:
    """Dropout masks of rows counted within the process."""
    plain = torchtrain.step.dropout_masks

    def masks(config, update, rows):
        made = plain(config, update, rows)
        if made is not None:
            made.rows = made.rows % (config.micro_batch // grid_of(config).layout.sharing_rows)
        return made

    patch.setattr(torchtrain.step, "dropout_masks", masks)


def _untied(patch: pytest.MonkeyPatch, world: World) -> None:
    """The embedding's share of a tied weight's gradient is lost."""
    plain = F.embedding
    patch.setattr(F, "embedding", lambda tokens, weight, sparse=False: plain(tokens, weight.detach()))


def _swapped_shards(patch: pytest.MonkeyPatch, world: World) -> None:
    """A process takes its neighbour's shard of what is loaded."""
    import torchtrain.parallel.zero

    plain = torchtrain.parallel.zero._pieces

    def pieces(inner, stage, names, place):
        other = dataclasses.replace(place.data, index=place.data.size - 1 - place.data.index)
        return plain(inner, stage, names, dataclasses.replace(place, data=other))

    patch.setattr(torchtrain.parallel.zero, "_pieces", pieces)


def _no_sum_backward(patch: pytest.MonkeyPatch, world: World) -> None:
    """A column-parallel layer's input gets its own process's gradient only."""
    patch.setattr(torchtrain.layers, "copy_to_tensor_region", lambda x, axis: x)


def _replicated_twice(patch: pytest.MonkeyPatch, world: World) -> None:
    """The norm counts what all processes of the tensor axis hold once for each of them."""
    patch.setattr(torchtrain.parallel.trainer, "replicated_names", lambda config: frozenset())


def _bias_each(patch: pytest.MonkeyPatch, world: World) -> None:
    """A row-parallel layer adds its bias on each process before the sum."""

    def forward(self, x, masks=None):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return reduce_from_tensor_region(F.linear(x, self.weight.to(x.dtype), bias), self.summed)

    patch.setattr(torchtrain.layers.Linear, "forward", forward)


def _own_softmax(patch: pytest.MonkeyPatch, world: World) -> None:
    """Each process's softmax is over its own part of the vocabulary."""
    patch.setattr(Axis, "largest", lambda self, x: x)


def _tied_apart(patch: pytest.MonkeyPatch, world: World) -> None:
    """The first and the last stage each keep their own gradient of a tied weight."""
    patch.setattr(torchtrain.parallel.pipeline.Pipeline, "_sum_tied", lambda self: None)


BUGS = {
    "tied weight's gradients apart": _tied_apart,
    "gradients averaged": _mean,
    "gradients averaged by DeepSpeed": _mean_by_deepspeed,
    "norm of the shard": _norm_of_shard,
    "loss of the rank": _loss_of_rank,
    "rows of another": _same_rows,
    "masks by local row": _local_masks,
    "tied weight untied": _untied,
    "shards swapped": _swapped_shards,
    "gradients averaged by FSDP2": _mean_by_fsdp2,
    "rows swapped": _swapped_rows,
    "weights of the update before": _old_weights,
    "no sum in the backward pass": _no_sum_backward,
    "replicated counted twice": _replicated_twice,
    "bias on each": _bias_each,
    "peak of the shard": _own_softmax,
}

"""The stack where several processes share a run: each has some rows (data axis) or a part of each layer (tensor axis).

An update is made of the same parts as on one device (`torchtrain/step.py`); what differs stands here: which rows are
this process's, and how losses and gradients are summed. `zero_trainer.py` and `pipeline_trainer.py` build on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coretrain.alignment.planes import check_planes
from coretrain.base.arrays import Tensors
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import InitialParameters, check_score_head
from coretrain.data.batch import Batch
from coretrain.processes.layout import rows_of
from torchtrain.checkpoint import save_native
from torchtrain.layers import Dropout, master_dtype
from torchtrain.model import build_model
from torchtrain.objective import label_logprobs, label_scores
from torchtrain.optimizer import Optimizer, global_norm, replicated_names
from torchtrain.parallel.processes import grid_of
from torchtrain.step import gradients_of, loss_in, target_scale
from torchtrain.trainer import Trainer


class ParallelTrainer(Trainer):
    """A `Trainer` of one of several processes, all of which call its methods in step."""

    alone = False

    def __init__(self, config: RunConfig, tensors: Tensors | None = None) -> None:
        self.grid = grid_of(config)
        super().__init__(config, tensors)

    def _initial(self) -> Tensors:
        return InitialParameters(self.config.model, self.config.train.seed)  # one at a time: each takes a part of it

    def _make(self, tensors: Tensors) -> None:
        self.model = build_model(self.config, self.kernel.name, tensors, self.device, self.grid.tensor)
        self.optimizer = Optimizer(self.config, self.model)
        self.loss = self._loss_of(self.model)

    def describe(self) -> Sequence[tuple[str, str]]:
        """As on one device, and the processes."""
        return [*super().describe(), *([("processes", self.grid.describe())] if self.grid.size > 1 else [])]

    def _summed(self, batch: Batch, loss_scale: float, dropout: Dropout | None) -> tuple[Tensor, Tensor]:
        scale = target_scale(self.config, batch, loss_scale)
        self._forget_gradients()
        return self._reduce(self._over_micro_batches(batch, scale, dropout))

    def _over_micro_batches(self, batch: Batch, scale: Tensor, dropout: Dropout | None) -> Tensor:
        """The loss of this process's rows, whose gradients are added up."""
        loss = torch.zeros_like(scale)
        shares = rows_of(self.config, self.grid.layout, self.grid.data.index)
        for number, rows in enumerate(shares, 1):
            micro = self.loss(batch.rows(rows), scale, dropout and dropout.of(rows))
            self._backward(micro, last=number == len(shares))
            loss = loss + micro.detach()
        return loss

    def _forget_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def _backward(self, told: Tensor, last: bool) -> None:
        loss_in(told).backward()

    def _reduce(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm of the whole batch from this process's part, the same bits on all processes."""
        gradients = self._summed_gradients()
        if self.grid.size == 1:
            return loss, global_norm(gradients.values())
        nothing = torch.zeros(1, device=self.device)
        twice = replicated_names(self.config) if self.grid.tensor.size > 1 else frozenset()
        own = global_norm([g for name, g in gradients.items() if name not in twice] or [nothing])
        shared = global_norm([g for name, g in gradients.items() if name in twice] or [nothing])
        table = self.grid.table(own**2, shared**2, *loss.reshape(-1))
        holders = self._holders
        norm = (table[holders, :, :, 0].sum() + table[holders, :, 0, 1].sum()).sqrt()
        return torch.stack([table[:, :, 0, at].sum() for at in range(2, table.shape[-1])]).view_as(loss), norm

    def _summed_gradients(self) -> dict[str, Tensor]:
        """What this process has of the summed gradients, by parameter, each number of them on one of its row once."""
        gradients = gradients_of(self.model)
        self.grid.sum_gradients(list(gradients.values()))
        return gradients

    @property
    def _holders(self) -> slice:
        """The processes of the data axis that hold different gradients: after the sum all have the same ones."""
        return slice(1)

    @torch.no_grad()
    def measure(self, batch: Batch) -> list[float]:
        """Sum of the losses of the whole batch's targets, and its figures, without dropout; alike on all processes."""
        check_planes(self.config.train.objective, batch)
        one = torch.ones((), dtype=master_dtype(self.config), device=self.device)
        total = torch.zeros((), dtype=torch.float64)
        self.model.eval()
        for piece in self._own_rows(batch):
            total = total + self._evaluated(piece, one).cpu()
        self.model.train()
        table = self.grid.table(*total.reshape(-1).to(self.device))
        return [table[:, :, 0, at].sum().item() for at in range(table.shape[-1])]

    def _own_rows(self, batch: Batch) -> Iterable[Batch]:
        """This process's rows of each micro-batch: as many on all, some of them without a target at the end."""
        data = self.grid.data
        for piece in batch.cut(self.config.micro_batch):
            share = -(-len(piece) // data.size)
            own = slice(data.index * share, (data.index + 1) * share)
            yield self._on_device(piece.padded(share * data.size).rows(own))

    def _evaluated(self, piece: Batch, scale: Tensor) -> Tensor:
        return self.loss(piece, scale, None)

    @torch.no_grad()
    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Log-probability of each label of the whole batch [B, T], without dropout, on all processes."""
        self.model.eval()
        pieces = [
            self.grid.data.stacked(label_logprobs(self.model, self.config, own, None, temperature))[: len(piece)]
            for piece, own in zip(batch.cut(self.config.micro_batch), self._own_rows(batch), strict=True)
        ]
        self.model.train()
        return torch.cat(pieces).cpu().numpy()

    @torch.no_grad()
    def token_scores(self, batch: Batch) -> np.ndarray:
        """Each label's log-probability, and 1 where no id is likelier, of the whole batch, [B, T, 2]."""
        self.model.eval()
        pieces = [
            self.grid.data.stacked(label_scores(self.model, self.config, own))[: len(piece)]
            for piece, own in zip(batch.cut(self.config.micro_batch), self._own_rows(batch), strict=True)
        ]
        self.model.train()
        return torch.cat(pieces).cpu().numpy()

    @torch.no_grad()
    def values(self, batch: Batch) -> np.ndarray:
        """What the score head gives at each position of the whole batch [B, T], without dropout, on all processes."""
        check_score_head(self.config.model)
        self.model.eval()
        pieces = [
            self.grid.data.stacked(self._values(own))[: len(piece)]
            for piece, own in zip(batch.cut(self.config.micro_batch), self._own_rows(batch), strict=True)
        ]
        self.model.train()
        return torch.cat(pieces).cpu().numpy()

    def save(self, folder: Path) -> Future[None]:
        """Start writing this process's part of parameters and moments into `folder`, in the background."""
        self.saving = save_native(folder, list(self.optimizer.fragments(self.grid.data)), self.grid.rank)
        return self.saving

    def export(self) -> Mapping[str, Tensors]:
        """As on one device; of several processes none holds all (see `save`)."""
        if self.grid.size > 1:
            raise RuntimeError("several processes hold this state: save it, and read the checkpoint")
        return super().export()

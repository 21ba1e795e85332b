"""The stack where layers lie in stages, one process (or tensor axis of them) each: micro-batches pass through.

This file has no twin: in JAX stages are an axis of the mesh (jaxtrain/parallel/pipeline.py).
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coretrain.base.arrays import Tensors
from coretrain.base.errors import UserError
from coretrain.data.batch import Batch
from coretrain.processes.layout import rows_of
from torchtrain.checkpoint import save_native
from torchtrain.layers import Dropout
from torchtrain.model import materialize
from torchtrain.optimizer import Optimizer
from torchtrain.parallel.pipeline import Pipeline, Stage
from torchtrain.parallel.trainer import ParallelTrainer


class PipelineTrainer(ParallelTrainer):
    """A `ParallelTrainer` that holds some of the layers (`parallel.pipeline` above 1)."""

    def _make(self, tensors: Tensors) -> None:
        with torch.device("meta"):
            stage = Stage(self.config, self.kernel.name, self.grid.tensor, self.grid.pipeline)
        self.model = materialize(self.config, stage, tensors, self.device)
        self.pipeline = Pipeline(self.config, stage, self.grid)
        self.optimizer = Optimizer(self.config, self.model)

    @property
    def in_step(self) -> bool:
        """Always: a stage waits for the others in each micro-batch."""
        return True

    def _over_micro_batches(self, batch: Batch, scale: Tensor, dropout: Dropout | None) -> Tensor:
        """All of them at once: the pipeline's schedule says which stage works on which."""
        shares = rows_of(self.config, self.grid.layout, self.grid.data.index)
        own = torch.cat([torch.arange(rows.start, rows.stop, device=self.device) for rows in shares])
        rows = batch.map(lambda plane: plane[own])
        return self.pipeline.gradients(rows, scale, dropout and dropout.of(own))

    def _summed_gradients(self) -> dict[str, Tensor]:
        gradients = super()._summed_gradients()
        return {name: gradient for name, gradient in gradients.items() if name not in self._copies}

    @property
    def _copies(self) -> frozenset[str]:
        """Parameters that an earlier stage has too: a tied head's embedding."""
        later = self.grid.pipeline.index > 0 and self.config.model.tied
        return frozenset({"embed.token"} & dict(self.model.named_parameters()).keys()) if later else frozenset()

    def _evaluated(self, piece: Batch, scale: Tensor) -> Tensor:
        return self.pipeline.evaluate(piece, scale)

    def token_scores(self, batch: Batch) -> np.ndarray:
        """Not to be had from stages. Raises `UserError`."""
        return self.token_logprobs(batch)

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> np.ndarray:
        """Not to be had from stages. Raises `UserError`."""
        raise UserError(
            "torch/pipeline-without-log-probs",
            f"parallel.pipeline = {self.config.parallel.pipeline}: log-probabilities of tokens are not computed in "
            "stages; set parallel.pipeline = 1",
        )

    def values(self, batch: Batch) -> np.ndarray:
        """Not to be had from stages. Raises `UserError`."""
        raise UserError(
            "torch/pipeline-without-values",
            f"parallel.pipeline = {self.config.parallel.pipeline}: scores of positions are not computed in stages; set "
            "parallel.pipeline = 1",
        )

    def save(self, folder: Path) -> Future[None]:
        """Start writing this stage's part of parameters and moments into `folder`, in the background."""
        state = [part for part in self.optimizer.fragments(self.grid.data) if part.name not in self._copies]
        self.saving = save_native(folder, state, self.grid.rank)
        return self.saving

"""Which trainer a run takes: one device's, or one that shares it (twin: jaxtrain/parallel/choose.py)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coretrain.config.run import RunConfig
from torchtrain.parallel.processes import grid_of
from torchtrain.parallel.trainer import ParallelTrainer
from torchtrain.trainer import Trainer


def make_trainer(config: RunConfig, tensors: Mapping[str, np.ndarray] | None = None) -> Trainer:
    """The trainer of a run in this process, which has joined the others where there are some (`processes.join`)."""
    grid = grid_of(config)
    if not grid.joined or (grid.size == 1 and not config.parallel.zero):
        return Trainer(config, tensors)
    if config.parallel.zero:
        from torchtrain.parallel.zero_trainer import ZeroTrainer  # DeepSpeed is an optional dependency

        return ZeroTrainer(config, tensors)
    if config.parallel.pipeline > 1:
        from torchtrain.parallel.pipeline_trainer import PipelineTrainer  # torch's schedules take a second to import

        return PipelineTrainer(config, tensors)
    return ParallelTrainer(config, tensors)

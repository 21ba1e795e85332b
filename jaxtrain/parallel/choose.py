"""Which trainer a run takes: one device's, or one that shares it (twin: torchtrain/parallel/choose.py)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from coretrain.config.run import RunConfig
from coretrain.contract.choices import Choice
from jaxtrain.choices import choose_device, configure_jax
from jaxtrain.parallel.processes import choose_devices
from jaxtrain.parallel.trainer import ParallelTrainer
from jaxtrain.trainer import Trainer


def make_trainer(config: RunConfig, tensors: Mapping[str, np.ndarray] | None = None) -> Trainer:
    """The trainer of a run in this process, which has joined the others where there are some (`processes.join`)."""
    configure_jax(config)
    present = jax.devices(choose_device(config).name)
    devices = choose_devices(config, present)
    if devices.layout.devices > 1:
        return ParallelTrainer(config, tensors)
    trainer = Trainer(config, tensors)
    if len(present) > 1:
        asked = trainer.device_choice
        trainer.device_choice = Choice(asked.name, f"{asked.reason}; one device: {devices.reason}")
    return trainer

"""A state whose every bit matters, and checkpoints of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress, seal
from coretrain.config.model import ModelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import initial_parameters

CONFIG = RunConfig(model=ModelConfig(layers=2, width=32, heads=2, vocab=300, context=16))
PROGRESS = Progress(
    update=7,
    applied=6,
    tokens=7 * 256,
    data_index=9,
    data_fingerprint="ab" * 16,
    batch_size=16,
    seed=1337,
    health={"window": [0.1 + 0.2, 1e-300, 3.0], "skipped": 1},
    loss_scale={"scale": 65536.0, "good": 12},
    best={"update": 5, "val_loss": 1 / 3},
)


def groups(dtype: type = np.float32) -> dict[str, dict[str, np.ndarray]]:
    """Parameters and moments whose every bit matters: the second moment is tiny and denormal in places."""
    start = {name: value.astype(dtype) for name, value in initial_parameters(CONFIG.model, 3).items()}
    moments = {name: np.square(value) * dtype(1e-36) for name, value in start.items()}
    return {"parameters": start, "first_moment": {n: -v / 3 for n, v in start.items()}, "second_moment": moments}


def native(folder: CheckpointFolder, update: int, content: bytes = b"state") -> Path:
    """Save what stands in for a stack's own files."""
    temporary = folder.begin(update)
    (temporary / "state").mkdir()
    (temporary / "state" / "part").write_bytes(content * 100)
    seal(temporary, replace(PROGRESS, update=update), CONFIG, "torch")
    return folder.commit(temporary, update)


def updates(folder: CheckpointFolder) -> list[str]:
    """Names of the checkpoints that count."""
    return [path.name for path in folder.complete()]

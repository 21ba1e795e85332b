"""The processes of a run in PyTorch, and how they share its work (twin: jaxtrain/parallel.py)."""

from __future__ import annotations

from coretrain.config import RunConfig
from coretrain.world import World


def join(config: RunConfig) -> World:
    """The world of this process: those that torchrun, deepspeed or `--spawn` started with it, or itself alone."""
    return World()

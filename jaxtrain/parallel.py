"""The processes of a run in JAX, and how they share its work (twin: torchtrain/parallel.py)."""

from __future__ import annotations

from coretrain.config import RunConfig
from coretrain.world import World


def join(config: RunConfig) -> World:
    """The world of this process: the hosts that run with it, or itself alone."""
    return World()

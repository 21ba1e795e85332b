"""What a launcher tells its processes."""

from __future__ import annotations

import os
import socket

from coretrain.base.errors import UserError
from coretrain.base.numbers import told_number

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its processes, and a process of one's own must not inherit."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ


def launched_as() -> tuple[int, int]:
    """This process's rank, and how many there are: 0 of 1 where no launcher started it.

    Raises `UserError` where the environment says something else than two such numbers.
    """
    if not launched():
        return 0, 1
    rank, size = told_number("RANK"), told_number("WORLD_SIZE")
    if rank >= size:
        raise UserError(
            "processes/rank-beyond-world",
            f"the environment says RANK = {rank} and WORLD_SIZE = {size}: ranks go from 0 to {size - 1}; start the run "
            "with torchrun, deepspeed or --spawn, or unset RANK for a run of one process",
        )
    return rank, size


def environment_alone() -> dict[str, str]:
    """This environment without a launcher's words; what the process says is UTF-8, whatever the terminal has."""
    return {name: value for name, value in os.environ.items() if name not in LAUNCHED} | {"PYTHONIOENCODING": "utf-8"}


def free_port() -> int:
    """A TCP port that nobody here listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

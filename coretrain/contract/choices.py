"""What is chosen automatically, with its reason; and the choice of an attention kernel from a stack's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig


@dataclass(frozen=True)
class Choice:
    """A thing chosen automatically, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention: the function, and why it can't run here (None where it can)."""

    compute: Callable[..., Any]
    """q [B, T, H, C], k and v [B, S, K, C] -> [B, T, H, C]."""
    obstacle: Callable[[RunConfig, Any], str | None]
    packed: Callable[..., Any] | None = None
    """The same with positions [B, T] of packed rows behind; None: it can't."""


def choose_kernel(kernels: Mapping[str, Kernel], stack: str, config: RunConfig, device: Any) -> Choice:
    """The kernel asked for by `execution.attention`, or the first of the table that can run on `device`.

    Raises `UserError` with the reason where the one asked for can't.
    """
    forced = config.execution.attention
    if forced != "auto":
        if forced not in kernels:
            raise UserError(
                "contract/unknown-attention-kernel",
                f"execution.attention = {forced} is not a {stack} kernel: choose auto, {', '.join(kernels)}",
            )
        if obstacle := _obstacle_of(kernels[forced], config, device):
            raise UserError(
                "contract/attention-kernel-unavailable",
                f"execution.attention = {forced} can't run here: {obstacle}; use auto",
            )
        return Choice(forced, "asked for by execution.attention")
    passed: list[str] = []
    for name, kernel in kernels.items():
        obstacle = _obstacle_of(kernel, config, device)
        if obstacle is None:
            return Choice(name, "; ".join([*passed, f"{name} is the first that can run"]))
        passed.append(f"{name}: {obstacle}")
    raise AssertionError("plain attention runs anywhere")


def _obstacle_of(kernel: Kernel, config: RunConfig, device: Any) -> str | None:
    """Why a kernel can't run here, packed rows among the reasons."""
    if obstacle := kernel.obstacle(config, device):
        return obstacle
    return "it keeps no samples of a packed row apart" if config.data.packed and not kernel.packed else None

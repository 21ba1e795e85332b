"""Bugs in what is saved, loaded, exported and adopted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from parity.gates import ROUND_TRIP, ROWS
from parity.mutants import (
    LLAMA,
    Patch,
    mutant,
    wrap,
)
from parity.probes.sides import TORCH, Side
from parity.probes.text import RESUME


def _loaded(patch: Patch, s: Side, change: Callable[[dict[str, Any], int], int]) -> None:
    """`change(groups, applied)` on what a resume has loaded; it gives the count of updates."""

    def load(f: Any) -> Any:
        def changed(self: Any, folder: Any, applied: int) -> None:
            f(self, folder, applied)
            groups = {name: dict(tensors) for name, tensors in self.export().items()}
            self.adopt(groups, change(groups, applied))

        return changed

    wrap(patch, s.trainer.Trainer, "load", load)


def _lost(group: str) -> Callable[[dict[str, Any], int], int]:
    def change(groups: dict[str, Any], applied: int) -> int:
        groups[group] = {name: np.zeros_like(tensor) for name, tensor in groups[group].items()}
        return applied

    return change


@mutant("checkpoint", RESUME, LLAMA)
def first_moment_lost_on_resume(patch: Patch, s: Side) -> None:
    """Momentum starts from zero."""
    _loaded(patch, s, _lost("first_moment"))


@mutant("checkpoint", RESUME, LLAMA)
def second_moment_lost_on_resume(patch: Patch, s: Side) -> None:
    """The optimizer's state isn't loaded in full."""
    _loaded(patch, s, _lost("second_moment"))


@mutant("checkpoint", RESUME, LLAMA)
def count_of_updates_off_by_one_on_resume(patch: Patch, s: Side) -> None:
    """Bias correction goes on one update late."""
    if s is TORCH:
        _loaded(patch, s, lambda groups, applied: applied - 1)
        return

    def load(f: Any) -> Any:
        def noted(self: Any, folder: Any, applied: int) -> None:
            f(self, folder, applied)
            self.late = 1

        return noted

    def apply(f: Any) -> Any:
        return lambda self, lr, factor, applied: f(self, lr, factor, applied - getattr(self, "late", 0))

    wrap(patch, s.trainer.Trainer, "load", load)
    wrap(patch, s.trainer.Trainer, "apply", apply)


@mutant("checkpoint", RESUME, LLAMA)
def weights_rounded_to_bfloat16_on_resume(patch: Patch, s: Side) -> None:
    """Weights loaded through the dtype of the activations."""

    def change(groups: dict[str, Any], applied: int) -> int:
        narrow = {n: torch.tensor(t).bfloat16().to(torch.float64).numpy() for n, t in groups["parameters"].items()}
        groups["parameters"] = narrow
        return applied

    _loaded(patch, s, change)


@mutant("checkpoint", ROWS, LLAMA, probe="resume")
def data_cursor_off_by_one_on_resume(patch: Patch, s: Side) -> None:
    """A resume that trains on the next update's batch."""

    def batches(f: Any) -> Any:
        return lambda self, data, start, stop: f(self, data, start + 1 if start else 0, stop + 1 if start else stop)

    wrap(patch, s.trainer.Trainer, "batches", batches)


def _exported(patch: Patch, s: Side, change: Callable[[str, np.ndarray], np.ndarray]) -> None:
    """`change(group, tensor)` on every tensor that is exported."""

    def export(f: Any) -> Any:
        return lambda self: {g: {n: change(g, t) for n, t in tensors.items()} for g, tensors in f(self).items()}

    wrap(patch, s.trainer.Trainer, "export", export)


@mutant("checkpoint", ROUND_TRIP)
def weights_rounded_to_float32_on_export(patch: Patch, s: Side) -> None:
    """float32 tensors in the file of a float64 run."""
    _exported(patch, s, lambda group, t: t.astype(np.float32).astype(t.dtype) if group == "parameters" else t)


@mutant("checkpoint", ROUND_TRIP)
def moments_rounded_to_bfloat16_on_export(patch: Patch, s: Side) -> None:
    """Moments saved in half their width to spare disk."""

    def change(group: str, t: np.ndarray) -> np.ndarray:
        return t if group == "parameters" else torch.tensor(t).bfloat16().to(torch.float64).numpy()

    _exported(patch, s, change)


@mutant("checkpoint", ROUND_TRIP)
def square_matrices_transposed_on_export(patch: Patch, s: Side) -> None:
    """Layouts confused where shapes can't show it."""
    _exported(patch, s, lambda group, t: t.T.copy() if t.ndim == 2 and t.shape[0] == t.shape[1] else t)


@mutant("checkpoint", ROUND_TRIP)
def moments_left_out_on_adoption(patch: Patch, s: Side) -> None:
    """A state taken over from the other stack without its moments."""

    def adopt(f: Any) -> Any:
        return lambda self, groups, applied: f(self, {"parameters": groups["parameters"]}, applied)

    wrap(patch, s.trainer.Trainer, "adopt", adopt)

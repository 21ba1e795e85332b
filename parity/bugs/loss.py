"""Bugs in the loss and in what of it becomes a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from parity.gates import LOSS, NORM
from parity.mutants import Patch, mutant, wrap
from parity.probes.sides import TORCH, Side


def change_loss(patch: Patch, s: Side, change: Callable[..., tuple[Any, ...]]) -> None:
    """`change(hidden, head, labels, vocab, chunk, scale)` on what the loss gets."""
    wrap(patch, s.objective, "cross_entropy", lambda f: lambda *args: f(*change(*args[:6]), *args[6:]))


@mutant("loss", LOSS)
def labels_shifted(patch: Patch, s: Side) -> None:
    """Labels shifted once in the data and once more in the loss."""
    change_loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, s.xp.roll(labels, 1, -1), v, c, scale))


@mutant("loss", LOSS)
def padding_in_the_loss(patch: Patch, s: Side) -> None:
    """The vocabulary's padding takes part in the softmax."""
    change_loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels, len(w), c, scale))


@mutant("loss", LOSS)
def ignored_label_counts(patch: Patch, s: Side) -> None:
    """-100 clamped to a token."""
    change_loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels.clip(0), v, c, scale))


@mutant("loss", LOSS)
def mean_of_means(patch: Patch, s: Side) -> None:
    """Each micro-batch over its own targets: right only where they have equally many."""

    def change(h: Any, w: Any, labels: Any, v: int, c: int, scale: Any) -> tuple[Any, ...]:
        return h, w, labels, v, c, s.cast(1 / ((labels != -100).sum() * 2), "float64")

    change_loss(patch, s, change)


@mutant("loss", LOSS)
def sum_for_mean(patch: Patch, s: Side) -> None:
    """reduction="sum"."""
    change_loss(patch, s, lambda h, w, labels, v, c, scale: (h, w, labels, v, c, 0 * scale + 1))


@mutant("loss", LOSS)
def last_chunk_dropped(patch: Patch, s: Side) -> None:
    """Chunks by whole division: the rest of the tokens is lost."""

    def change(h: Any, w: Any, labels: Any, v: int, c: int, scale: Any) -> tuple[Any, ...]:
        count = math.prod(labels.shape)
        kept = s.array(np.arange(count).reshape(labels.shape) < count // c * c)
        return h, w, s.xp.where(kept, labels, -100), v, c, scale

    change_loss(patch, s, change)


@mutant("loss", LOSS)
def loss_in_float32(patch: Patch, s: Side) -> None:
    """The loss summed up in float32."""
    wrap(patch, s.objective, "cross_entropy", lambda f: lambda *args: s.rounded(f(*args), "float32"))


@mutant("loss", NORM)
def gradients_summed_for_averaged(patch: Patch, s: Side) -> None:
    """Gradients twice as large beside the right loss: the clip and Adam leave next to nothing of it."""

    def doubled(f: Any) -> Any:
        def gradients(self: Any, batch: Any, update: int, scale: float) -> tuple[float, float]:
            loss, norm = f(self, batch, update, scale)
            each_gradient(s, self, lambda g: 2 * g)
            return loss, 2 * norm

        return gradients

    wrap(patch, s.trainer.Trainer, "gradients", doubled)


def each_gradient(s: Side, stack: Any, change: Callable[[Any], Any]) -> None:
    """`change` on the last gradients of a trainer."""
    if s is TORCH:
        for parameter in stack.model.parameters():
            parameter.grad = change(parameter.grad)
    else:
        stack.last_gradients = jax.tree.map(change, stack.last_gradients)

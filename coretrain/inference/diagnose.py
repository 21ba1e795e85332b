"""What a run's weights add to its curves: the loss of rows that it read beside that of others, and gradient noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError
from coretrain.config.run import RunConfig
from coretrain.data.batch import Batch
from coretrain.data.batches import updates_of, validation_batches
from coretrain.data.splits import Data
from coretrain.diagnosis.noise import Noise, noise_scale
from coretrain.inference.generate import open_for_generation
from coretrain.training.references import MakeStack
from coretrain.training.stack import Stack

BATCHES = 8
PIECES = 4
"""A batch's gradient norm is taken of the whole and of so many pieces."""


@dataclass(frozen=True)
class Measured:
    """Losses in nats a token, of the run's best checkpoint."""

    read: float
    """Of rows of the first updates."""
    at_first_sight: float
    """Of the same rows when they were read first, by the journal."""
    unread: float
    """Of validation rows."""
    error: float
    """Standard error of `unread - read`, by the batches."""
    noise: Noise | None
    """None where a batch has but one row."""


def measure(folder: Path, make_stack: MakeStack, data: Data, losses: Sequence[float | None]) -> Measured:
    """Open a run's best checkpoint and score `BATCHES` batches that it has read. `losses` are those of its journal.

    Raises `UserError` where it was trained for too few updates.
    """
    stack = open_for_generation(folder, make_stack)
    config = stack.config
    batches = list(_read(data, config, len(losses)))
    read = [stack.evaluate(batch) / batch.target_weight for _, batch in batches]
    unread = [stack.evaluate(batch) / batch.target_weight for batch in validation_batches(data, config)]
    first = [losses[at] for at, _ in batches]
    known = [math.nan if loss is None else loss for loss in first]
    error = math.hypot(_error(read), _error(unread))
    noise = gradient_noise(stack, [batch for _, batch in batches])
    return Measured(float(np.mean(read)), float(np.mean(known)), float(np.mean(unread)), error, noise)


def gradient_noise(stack: Stack, batches: Sequence[Batch]) -> Noise | None:
    """The noise scale at the stack's weights, of batches of one size; None where they have one row."""
    rows = len(batches[0])
    if rows < 2:
        return None
    piece = max(1, rows // PIECES)
    large, small = [], []
    for number, batch in enumerate(batches):
        large.append(stack.gradients(batch, number, 1.0)[1])
        # padded with rows that have no target, so that all have one shape
        cut = [batch.rows(slice(at, at + piece)).padded(rows) for at in range(0, rows - piece + 1, piece)]
        small.append([stack.gradients(each, number, 1.0)[1] for each in cut])
    return noise_scale(large, small, rows, piece)


def _read(data: Data, config: RunConfig, done: int) -> Iterator[tuple[int, Batch]]:
    """Whole batches of the first updates, spread over half of those that were made."""
    if done < 2 * BATCHES:
        raise UserError(
            "inference/too-few-updates", f"{done} updates are too few to measure by: train {2 * BATCHES} or more"
        )
    made = updates_of(data, config, updates=done)
    for at in np.linspace(0, done // 2, BATCHES).astype(int).tolist():
        yield at, made.batch(at)


def _error(losses: Sequence[float]) -> float:
    return float(np.std(losses, ddof=1) / math.sqrt(len(losses))) if len(losses) > 1 else math.nan

"""The numbers that a diagnosis rests on, from the rows of a run's metrics.jsonl."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, Any]
Floats = NDArray[np.float64]
LAST = 0.1
"""Share of the updates whose mean is the training loss at the end; at least `FEWEST`."""
FEWEST = 5
LOOKED_FORWARD = 50
"""Most updates on either side of an epoch's end whose means are compared."""
SPIKE = 8.0
"""A spike is a loss this many spreads above the median of the updates before it. The spread is that of the differences
from update to update, by the median, which a falling curve doesn't widen."""
BEFORE = 32
"""Updates before one that it is held against."""


@dataclass(frozen=True)
class Reread:
    """The end of an epoch, after which rows are read that were read before."""

    epoch: int
    """Epochs read by then."""
    mean: float
    """Mean loss of the epoch that ended, nats a token."""
    fall: float
    """By how much the loss is lower just after than just before, beyond the trend before it. Above 0 where the model
    knows rows by heart."""
    error: float
    """Its standard error."""


@dataclass(frozen=True)
class Curves:
    """What a run's journal says. Losses are nats a token."""

    done: int
    """Updates."""
    planned: int
    epochs: float | None
    """How often each training row has been read, on average; None where that isn't known."""
    train: float
    """Mean loss of the last updates."""
    train_error: float
    """Standard error of that mean, of a straight line through them."""
    train_falls: float
    """By how much the training loss fell over the last doubling of updates, as a share of it."""
    validation: tuple[tuple[int, float], ...]
    """(updates, loss) of each evaluation whose loss is finite."""
    comparable: bool
    """Whether training and validation rows are drawn alike: of one source, with a loss of text."""
    rereads: tuple[Reread, ...]
    spikes: tuple[int, ...]
    """Updates (from 0) whose loss stood far above those before."""
    troubles: Mapping[str, int]
    """Events by kind: skip, rollback, stop."""
    lost: bool
    """The last loss isn't finite."""
    frequencies: float | None
    """Entropy of the tokens' frequencies, nats: the loss without a look at what stands before; None if unknown."""
    leapt: float
    """The highest mean loss of `FEWEST` updates in a row as a share of the first ones'."""
    rate: float
    """The last update's learning rate as a share of the highest."""

    @property
    def best(self) -> tuple[int, float] | None:
        """(updates, loss) of the lowest evaluation."""
        return min(self.validation, key=lambda point: point[1], default=None)

    @property
    def rise(self) -> float:
        """By how much the last validation loss lies above the lowest, as a share of it."""
        return self.validation[-1][1] / self.best[1] - 1 if self.best else 0.0

    @property
    def gap(self) -> float | None:
        """Validation loss at the end less training loss; None where they can't be compared."""
        return self.validation[-1][1] - self.train if self.validation and self.comparable else None

    @property
    def falls(self) -> float | None:
        """By how much the validation loss fell while the updates doubled last, as a share of it; None if unknown.

        From half of the updates done to all, between evaluations by a straight line.
        """
        if len(self.validation) < 2 or self.validation[0][0] > self.done / 2:
            return None
        at, loss = np.array(self.validation, float).T
        half, end = np.interp([self.done / 2, self.done], at, loss)
        return float(half / end - 1)


def read_curves(
    updates: Sequence[Row],
    evaluations: Sequence[Row],
    events: Sequence[Row],
    planned: int,
    epoch: float | None,
    comparable: bool,
    frequencies: float | None = None,
) -> Curves:
    """The rows of metrics.jsonl (`journal.metrics.read_metrics`) as numbers. `epoch` is the updates in one epoch.

    Raises ValueError where there is no update.
    """
    if not updates:
        raise ValueError("no update has been made")
    loss = np.array([math.nan if row["loss"] is None else row["loss"] for row in updates], float)
    last = loss[-max(FEWEST, round(LAST * len(loss))) :]
    rates = [row["lr"] for row in updates]
    found = [(row["update"], row["val_loss"]) for row in evaluations if row["val_loss"] is not None]
    first, latest = _mean(loss[len(loss) // 2 - len(last) // 2 :][: len(last)]), _mean(last)
    return Curves(
        done=len(updates),
        planned=planned,
        epochs=len(updates) / epoch if epoch else None,
        train=latest,
        train_error=_error(last),
        train_falls=first / latest - 1 if latest else 0.0,
        validation=tuple(found),
        comparable=comparable,
        rereads=_rereads(loss, epoch) if epoch else (),
        spikes=_spikes(loss),
        troubles=Counter(row["event"] for row in events if row["event"] in ("skip", "rollback", "stop")),
        lost=not math.isfinite(loss[-1]),
        frequencies=frequencies,
        leapt=_leapt(loss),
        rate=rates[-1] / max(max(rates), 1e-300),
    )


def _mean(loss: Floats) -> float:
    return float(np.nanmean(loss)) if np.isfinite(loss).any() else math.nan


def _leapt(loss: Floats) -> float:
    means = [_mean(loss[at : at + FEWEST]) for at in range(0, max(1, len(loss) - FEWEST), FEWEST)]
    return float(np.nanmax(means) / means[0]) if np.isfinite(means).any() and means[0] else 1.0


def _error(loss: Floats) -> float:
    """Standard error of the mean of values about a straight line."""
    x = np.flatnonzero(np.isfinite(loss))
    if len(x) < 3:
        return math.nan
    y = loss[x]
    left = y - np.polyval(np.polyfit(x, y, 1), x)
    return float(np.sqrt((left**2).sum() / (len(x) - 2) / len(x)))


def _rereads(loss: Floats, epoch: float) -> tuple[Reread, ...]:
    """At the end of each whole epoch that is followed by enough updates."""
    side = min(LOOKED_FORWARD, int(epoch // 3))
    if side < FEWEST:
        return ()
    found = []
    for number in range(1, int(len(loss) / epoch) + 1):
        end = round(number * epoch)
        if end + side > len(loss):
            break
        before, after = loss[end - 2 * side : end], loss[end : end + side]
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            continue
        x = np.arange(2 * side)
        line = np.polyfit(x, before, 1)
        there = np.arange(2 * side, 3 * side)
        spread = np.sqrt(((before - np.polyval(line, x)) ** 2).sum() / (2 * side - 2))
        # of the line carried on to the middle of `after`, and of the mean there
        carried = 1 / len(x) + (there.mean() - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        fall = float(np.polyval(line, there).mean() - after.mean())
        error = float(spread * math.sqrt(carried + 1 / side))
        found.append(Reread(number, _mean(loss[round((number - 1) * epoch) : end]), fall, error))
    return tuple(found)


def _spikes(loss: Floats) -> tuple[int, ...]:
    found = []
    for at in range(BEFORE, len(loss)):
        before = loss[at - BEFORE : at]
        before = before[np.isfinite(before)]
        if len(before) < BEFORE // 2 or not math.isfinite(loss[at]):
            continue
        steps = np.diff(before)
        spread = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
        if loss[at] - np.median(before) > SPIKE * spread + 1e-3 * abs(float(np.median(before))):
            found.append(at)
    return tuple(found)

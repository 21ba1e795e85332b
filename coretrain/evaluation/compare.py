"""Two runs on the same tasks: what was gained, what was forgotten, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coretrain.base.errors import UserError
from coretrain.evaluation.evaluate import Outcome, hits_of
from coretrain.evaluation.intervals import Estimate, difference


@dataclass(frozen=True)
class Compared:
    """A task's outcome after something, beside that before it."""

    after: Outcome
    before: Outcome
    gain: Estimate
    """Above 0 the later is better, also where less is better."""

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.gain.clear:
            return "no clear difference"
        return "gained" if self.gain.value > 0 else "forgotten"


def compare(after: Outcome, before: Outcome) -> Compared:
    """Both outcomes, with the interval of their paired difference. Raises `UserError` where the tasks differ."""
    if after.key != before.key:
        raise UserError(
            "evaluation/tasks-differ", f"task {after.task.name} wasn't asked alike of both runs: evaluate both anew"
        )
    return Compared(after, before, _gain(after, before))


def _gain(after: Outcome, before: Outcome) -> Estimate:
    if after.nats is None or before.nats is None or after.weights is None or before.weights is None:
        return difference(hits_of(after.rows, after.metric), hits_of(before.rows, after.metric))
    if not np.array_equal(after.weights, before.weights):  # other tokens, other pieces: there are no pairs
        return Estimate(before.value.value - after.value.value, -math.inf, math.inf)
    saved = (before.nats - after.nats) / after.weights / math.log(2)
    return difference(saved, np.zeros(len(saved)), after.weights)


def forgetting(compared: Sequence[Compared]) -> str:
    """What a person should know, in a sentence."""
    by = {
        verdict: [one.after.task.name for one in compared if one.verdict == verdict]
        for verdict in ("gained", "forgotten")
    }
    said = [f"{verdict}: {', '.join(names)}" for verdict, names in by.items() if names]
    return "; ".join(said) or "no task differs by more than chance"

"""What a framework brings to the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coretrain.base.arrays import Tensors
from coretrain.config.run import RunConfig
from coretrain.contract.branches import Branches
from coretrain.contract.decoding import Sampled
from coretrain.contract.lanes import Lanes
from coretrain.contract.sampling import Sampling
from coretrain.contract.schedule import clip_factor
from coretrain.contract.update import Figures, Orders, Read, judged
from coretrain.data.batch import Batch
from coretrain.data.splits import Data


class Saves(Protocol):
    """What of a stack writes its state."""

    name: str

    @property
    def writes_in_place(self) -> bool:
        """Whether a save is written from where the state lies, so that the next update has to wait for it."""

    def save(self, folder: Path) -> Future[None]:
        """Write parameters and moments into `folder`; the future ends with it, and raises what went wrong."""


class InStep:
    """`Stack.update` of `gradients` and `apply`, between which the host reads loss and norm and judges them."""

    config: RunConfig
    more: Sequence[float] = ()
    """The objective's figures of the last gradients."""

    @property
    def in_step(self) -> bool:
        """As in `Stack`."""
        return True

    def update(self, batch: Batch, update: int, orders: Orders, change: Callable[[], None]) -> Read:
        """One whole update, done when this returns."""
        loss, norm = self.gradients(batch, update, orders.scale)
        fine, _ = judged(self.config.health, orders.standing, loss, norm, orders.limits, math.isfinite)
        change()
        if fine:
            factor = clip_factor(norm, self.config.optimizer.clip) / orders.scale
            self.apply(orders.lr, factor, orders.standing.applied)
        more = tuple(self.more)
        return lambda: Figures(loss, norm, fine, more)

    def gradients(self, batch: Batch, update: int, loss_scale: float) -> tuple[float, float]:
        """As in `Stack`."""
        raise NotImplementedError

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """As in `Stack`."""
        raise NotImplementedError


class Stack(Saves, Protocol):
    """What a framework brings to the loop. The model, the moments and the last gradients live inside it."""

    config: RunConfig
    device_name: str
    alone: bool
    """Whether one device holds the whole model and takes all rows, as `branch_scores` and `lanes` need it."""

    def describe(self) -> Sequence[tuple[str, str]]:
        """Device, dtypes, attention kernel and compilation, each with its reason."""

    def batches(self, data: Data, start: int, stop: int) -> Iterator[Batch]:
        """Global batches of the indices [start, stop) of the data order."""

    @property
    def in_step(self) -> bool:
        """Whether `update` returns only once the update is done; else `health.lag` of them may be under way."""

    def update(self, batch: Batch, update: int, orders: Orders, change: Callable[[], None]) -> Read:
        """Begin an update: gradients, verdict, and, where it is healthy, the optimizer's step.

        `change` is called before the state changes. What is returned waits for the update's figures.
        """

    def gradients(self, batch: Batch, update: int, loss_scale: float) -> tuple[float, float]:
        """Mean of `train.objective` over the batch's targets, and the global gradient norm, both unscaled.

        The gradients stay inside until `apply` or the next call.
        """

    def apply(self, lr: float, factor: float, applied: int) -> None:
        """One optimizer update with the last gradients times `factor`, the one after `applied` others."""

    def evaluate(self, batch: Batch) -> float:
        """Sum of the losses of the batch's targets, without dropout."""

    def measure(self, batch: Batch) -> Sequence[float]:
        """That sum, and the objective's figures (`coretrain.alignment.figures`), without dropout."""

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> NDArray[np.generic]:
        """Log-probability of each label [B, T], of logits / temperature, without dropout; 0 where there is no target.

        The loop itself asks for none. A stack whose layers lie in stages raises `UserError`.
        """

    def token_scores(self, batch: Batch) -> NDArray[np.generic]:
        """Each label's log-probability, and 1 where no id is likelier, [B, T, 2], without dropout; 0 without a target.

        A stack whose layers lie in stages raises `UserError`.
        """

    def branch_scores(self, rows: Branches) -> NDArray[np.generic]:
        """The same of each label of rows whose beginnings are shared, [P, 2], without dropout; on one device."""

    def values(self, batch: Batch) -> NDArray[np.generic]:
        """What the score head (`model.score_head`) gives at each position [B, T], without dropout.

        Raises `UserError` where the model has none, or its layers lie in stages.
        """

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        on_tokens: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> list[list[int]]:
        """Up to `tokens` new ids after each prompt, ended early by a `stop` id."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        numbers: Sequence[int] | None = None,
    ) -> list[Sampled]:
        """As `generate`, with the stop id and each id's log-probability; the same on all processes.

        A token's random number depends on seed, position and the row's number alone: its place among the prompts, or
        `numbers` of a larger set of which these are some.
        """

    def replay(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        temperature: float,
        answers: Sequence[Sequence[int]],
    ) -> list[list[float]]:
        """The log-probabilities of the ids that `sample` gave for these prompts, by the same steps once more.

        On one device with the same weights they are `sample`'s, bit for bit.
        """

    def lanes(self, rows: int, slots: int) -> Lanes:
        """Rows of a key/value cache for requests that come and go one by one; on one device."""

    def load(self, folder: Path, applied: int | None) -> None:
        """Take parameters and moments from what `save` wrote, after `applied` updates; with None parameters alone."""

    def export(self) -> Mapping[str, Tensors]:
        """Parameters and moments in the interchange form."""

    def adopt(self, groups: Mapping[str, Tensors], applied: int) -> None:
        """Take parameters and moments from the interchange form."""
